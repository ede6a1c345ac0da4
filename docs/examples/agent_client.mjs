// A trainer in JavaScript: it asks `consentry agent` which members may be used, and asks again whenever the agent
// reports that somebody is excluded. Needs Node 18 or newer and no packages.
//
//   node agent_client.mjs http://127.0.0.1:8790 genai_training m:1 m:2
//
// It prints one JSON object for each line: {"after": the event, "fresh": …, "allowed": [members]}.

const [base, purpose, ...members] = process.argv.slice(2);
const token = process.env.CONSENTRY_AGENT_TOKEN; // needed if the agent has a --token-file
const headers = token ? { authorization: `Bearer ${token}` } : {};
const RETRY_MS = 500;
// The agent sends something every 10 s: after 30 s of silence the connection is dead, even if TCP says otherwise.
const SILENCE_MS = 30_000;

async function post(path, body) {
  const answer = await fetch(base + path, {
    method: "POST",
    headers: { ...headers, "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(30_000),
  });
  const data = await answer.json();
  if (!answer.ok) throw new Error(`${data.code}: ${data.detail} ${data.fix}`);
  return data;
}

// One request for all members: the mask has one answer for each, in their order.
async function ask(after) {
  let line = { after, fresh: false, allowed: [] };
  try {
    const { fresh, mask } = await post("/v1/mask", { purpose, member_id: members });
    line = { after, fresh, allowed: members.filter((_, place) => mask[place]) };
  } catch (error) {
    line.error = String(error); // without an answer nobody is allowed
  }
  console.log(JSON.stringify(line));
}

async function* events(lastEventId) {
  const stop = new AbortController();
  let alarm = setTimeout(() => stop.abort(), SILENCE_MS);
  const resume = lastEventId ? { "last-event-id": lastEventId } : {};
  try {
    const answer = await fetch(`${base}/v1/events?purpose=${purpose}`, {
      headers: { ...headers, ...resume },
      signal: stop.signal,
    });
    if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
    let text = "";
    for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
      clearTimeout(alarm);
      alarm = setTimeout(() => stop.abort(), SILENCE_MS);
      const blocks = (text + chunk).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
        if (fields.event) yield { id: fields.id, kind: fields.event, data: JSON.parse(fields.data) };
      }
    }
  } finally {
    clearTimeout(alarm);
    stop.abort();
  }
}

const one = await post("/v1/decide", { member: members[0], purpose });
console.log(JSON.stringify({ decision: one.reason, allowed: one.allowed }));

let last;
for (;;) {
  try {
    for await (const { id, kind, data } of events(last)) {
      last = id;
      // `status` comes first. From then on no event is missed, so the answer stays true until the next event.
      const concerns = kind !== "exclusion" || data.cause !== "RECORD" || data.members.some((m) => members.includes(m));
      if (concerns && kind !== "purge_order") await ask(kind);
    }
  } catch (error) {
    await ask(`disconnected: ${error.cause?.code ?? error.name}`);
  }
  await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
}
