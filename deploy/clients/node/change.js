// Changes how often a trunk is qualified, once, whatever happens on the way.
//
// node change.js PROTOS ADDRESS TRUNK_ID SECONDS [ETAG]
"use strict";

const { randomUUID } = require("node:crypto");
const { setTimeout: sleep } = require("node:timers/promises");
const { status } = require("@grpc/grpc-js");
const { connected, metadata, reason, retryMs, violations } = require("./connection.js");

const CALL_MS = 10_000;
const WHOLE_MS_MAX = 60_000;
const PAUSE_MS = 100, PAUSE_MS_MAX = 5_000;
const READS_MAX = 5;
// A server that ends may say CANCELLED; nothing here cancels a call itself.
const LATER = [status.UNAVAILABLE, status.CANCELLED, status.DEADLINE_EXCEEDED];

// The answer to a request, which is sent as it is until it is known what became of it.
async function answered(client, method, request) {
  const giveUp = Date.now() + WHOLE_MS_MAX;
  for (let pause = PAUSE_MS; ; pause = Math.min(pause * 2, PAUSE_MS_MAX)) {
    try {
      return await new Promise((resolve, reject) => {
        client[method](request, metadata(), { deadline: Date.now() + CALL_MS },
          (error, answer) => (error ? reject(error) : resolve(answer)));
      });
    } catch (error) {
      const wait = againAfter(error, pause);
      if (wait === undefined || Date.now() + wait > giveUp) throw error;
      await sleep(wait * (1 + Math.random() / 2));
    }
  }
}

// How long to wait before the same request is sent again; undefined where that is no use.
function againAfter(error, pause) {
  if (LATER.includes(error.code)) return Math.max(pause, retryMs(error) ?? 0);
  if (error.code === status.RESOURCE_EXHAUSTED || reason(error) === "REQUEST_IN_FLIGHT") {
    return retryMs(error);
  }
  return undefined;
}

// Sets one field of the trunk that has the etag; where it has changed, looks at it again.
async function qualify(client, id, etag, seconds) {
  for (let read = 0; read < READS_MAX; read++) {
    const request = {
      sip_trunk: { id, etag, qualify_frequency: seconds },
      update_mask: { paths: ["qualify_frequency"] },
      request_id: randomUUID(),
    };
    try {
      return await answered(client, "UpdateSipTrunk", request);
    } catch (error) {
      if (error.code !== status.ABORTED) throw error;
    }
    const trunk = await answered(client, "GetSipTrunk", { id });
    if (!trunk.is_active) throw new Error("switched off meanwhile: left as it is");
    etag = trunk.etag;
  }
  throw new Error(`changed by others ${READS_MAX} times in a row`);
}

async function main(protos, target, id, seconds, etag) {
  const client = connected(target, protos);
  etag ??= (await answered(client, "GetSipTrunk", { id })).etag;
  const trunk = await qualify(client, id, etag, Number(seconds));
  console.log(`qualify_frequency=${trunk.qualify_frequency} etag=${trunk.etag}`);
  client.close();
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  for (const v of violations(error)) console.error(`${v.field} [${v.reason}] ${v.description}`);
  process.exit(1);
});
