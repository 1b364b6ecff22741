// A service whose orders are in two databases: node service.js dev.json
const fs = require("node:fs");
const http = require("node:http");
const { Pool } = require("pg");

const dev = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const pools = Object.fromEntries(
  Object.entries(dev.participants).map(([name, dsn]) => [name, new Pool({ connectionString: dsn })]),
);
for (const pool of Object.values(pools)) pool.on("error", (error) => console.error(error.message));

async function sidecar(path, body) {
  const answer = await fetch(dev.sidecar + path, {
    method: "POST",
    headers: { Authorization: `Bearer ${dev.token}`, "Content-Type": "application/json" },
    body: body && JSON.stringify(body),
  });
  const told = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(`${told.name}: ${told.detail}`), { outcome: told.outcome });
  return told;
}

// One branch: this service's own SQL, on one session of its own pool.
async function branch(tx, participant, sql, values) {
  const { begin, prepare } = await sidecar(`${tx}/branches`, { participant });
  const session = await pools[participant].connect();
  try {
    await session.query(begin);
    await session.query(sql, values);
    await session.query(prepare);
    session.release();
  } catch (error) {
    session.release(error); // closes the session, which rolls its branch back
    throw error;
  }
}

async function order({ item, price }) {
  const tx = `/v1/transactions/${(await sidecar("/v1/transactions", { timeout_ms: 30000 })).id}`;
  try {
    await branch(tx, "orders", "insert into orders (item) values ($1)", [item]);
    await branch(tx, "payments", "update accounts set balance = balance - $1 where name = 'ada'", [price]);
  } catch (error) {
    await sidecar(`${tx}/rollback`);
    throw error;
  }
  try {
    return await sidecar(`${tx}/commit`);
  } catch (error) {
    if (error.outcome === "aborted") throw error;
    return { outcome: "unknown", tx }; // it may have committed: GET of tx tells it later
  }
}

const server = http.createServer(async (request, response) => {
  try {
    let body = "";
    for await (const piece of request) body += piece;
    const told = await order(JSON.parse(body));
    response.writeHead(told.outcome === "committed" ? 200 : 202).end(JSON.stringify(told));
  } catch (error) {
    response.writeHead(409).end(JSON.stringify({ error: error.message }));
  }
});
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
