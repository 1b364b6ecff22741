// A service whose orders are in two databases: node service.js dev.json
const fs = require("node:fs");
const http = require("node:http");
const { Pool } = require("pg");
const { transaction } = require("./undoubt.js");

const dev = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const pools = Object.fromEntries(
  Object.entries(dev.participants).map(([name, dsn]) => [name, new Pool({ connectionString: dsn })]),
);
for (const pool of Object.values(pools)) pool.on("error", (error) => console.error(error.message));

// One branch: this service's own SQL, on one session of its own pool.
async function branch(post, participant, sql, values) {
  const { begin, prepare } = await post("branches", { participant });
  const session = await pools[participant].connect();
  try {
    for (const words of [[begin], [sql, values], [prepare]]) await session.query(...words);
    session.release();
  } catch (error) {
    session.release(error); // closes the session, which rolls its branch back
    throw error;
  }
}

async function order(request) {
  let body = "";
  for await (const piece of request) body += piece;
  const { item, price } = JSON.parse(body);
  return transaction(dev, async (post) => {
    await branch(post, "orders", "insert into orders (item) values ($1)", [item]);
    await branch(post, "payments", "update accounts set balance = balance - $1 where name = 'ada'", [price]);
  });
}

const STATUS = { committed: 200, unknown: 202, aborted: 409 };
const server = http.createServer(async (request, response) => {
  const told = await order(request).catch(({ message }) => ({ outcome: "aborted", message }));
  response.writeHead(STATUS[told.outcome] ?? 500).end(JSON.stringify(told));
});
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
