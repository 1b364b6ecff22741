// The client of a sidecar. `work` gets a function that posts within the transaction, and adds its branches by it.
async function post({ sidecar, token }, path, body = {}) {
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  const answer = await fetch(sidecar + path, { method: "POST", headers, body: JSON.stringify(body) });
  const told = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(`${told.name}: ${told.detail}`), { outcome: told.outcome });
  return told;
}

// Its outcome: "committed", "aborted", "unknown" (it may have committed: GET of `tx` tells it later), or heuristic.
exports.transaction = async (at, work) => {
  const tx = `/v1/transactions/${(await post(at, "/v1/transactions", { timeout_ms: 30000 })).id}`;
  try {
    await work((verb, body) => post(at, `${tx}/${verb}`, body));
  } catch (error) {
    await post(at, `${tx}/rollback`).catch(() => {}); // otherwise its deadline rolls it back
    throw error;
  }
  return post(at, `${tx}/commit`).catch(({ outcome = "unknown", message }) => ({ outcome, tx, message }));
};
