// A client of the soak on Node's grpc-js: see soak.py, whose python client does the same.
//
//     node soak_client.js PORT NAME SEED PROTOS
'use strict';

const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [port, name, seed, protos] = process.argv.slice(2);
const CONCURRENT = 4;
const FINAL = 30000;

const definition = loader.loadSync('tensorcast/global_store/v1/global_store.proto', {
  includeDirs: [protos], keepCase: true, enums: String, longs: Number,
});
const store = grpc.loadPackageDefinition(definition).tensorcast.global_store.v1;
const client = new store.ClusterRuntimeService(
  `127.0.0.1:${port}`, grpc.credentials.createInsecure());

let state = Number(seed) || 1;
const random = () => { // xorshift, so that a seed repeats a run
  state ^= state << 13; state ^= state >>> 17; state ^= state << 5;
  return (state >>> 0) / 4294967296;
};
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const say = (...words) => process.stdout.write(`${words.join(' ')}\n`);

// Calls a method; cancelled after so many milliseconds if a number is given.
const call = (method, request, timeoutMs, cancelMs) => new Promise((done) => {
  const started = client[method](
    request, { deadline: Date.now() + timeoutMs }, (error, answer) => done({ error, answer }));
  if (cancelMs !== undefined) setTimeout(() => started.cancel(), cancelMs);
});

async function untilDone(method, request) {
  const end = Date.now() + FINAL;
  while (Date.now() < end) {
    const { error, answer } = await call(method, request, 5000);
    if (!error) return answer;
    await pause(50);
  }
  return null;
}

async function transfer(id) {
  const request = {
    artifact_id: 'model', request_id: id, source_node_id: name, source_address: '10.0.0.9',
    wait_timeout_dur: { seconds: 5 },
  };
  const mood = random();
  const asked = mood < 0.35
    ? await call('RequestReplicaTransport', request, 20000, random() * 30)
    : await call('RequestReplicaTransport', request, mood < 0.5 ? 1 + random() * 40 : 20000);
  let answer = asked.answer;
  if (asked.error) {
    say('failed', id, grpc.status[asked.error.code], String(asked.error.details).replace(/\s+/g, '_'));
    if (random() < 0.5) { say('left', id); return; }
    answer = await untilDone('RequestReplicaTransport', request);
    if (!answer) { say('left', id); return; }
  }
  if (!answer.transport_id) { say('missed', id); return; }
  say('granted', id);
  await pause(random() * 20);
  const outcome = 'TRANSPORT_COMPLETION_OUTCOME_SUCCESS';
  const ended = await untilDone(
    'CompleteReplicaTransport', { transport_id: answer.transport_id, outcome });
  say(ended ? 'completed' : 'left', id);
}

let stopping = false;
process.stdin.on('end', () => { stopping = true; });
process.stdin.resume();

async function main() {
  await Promise.all(Array.from({ length: CONCURRENT }, async (_, lane) => {
    for (let number = 0; !stopping; number += 1) await transfer(`${name}-${lane}-${number}`);
  }));
  say('stopped');
  process.exit(0);
}
main();
