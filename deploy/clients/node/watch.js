// Keeps the account's trunks in memory and prints each change; goes on wherever a stream is cut.
//
// node watch.js PROTOS ADDRESS
"use strict";

const { setTimeout: sleep } = require("node:timers/promises");
const { status } = require("@grpc/grpc-js");
const { connected, metadata, reason, retryMs } = require("./connection.js");

const SILENCE_MS_MAX = 45_000; // the server says something every 15 s
const PAUSE_MS = 200, PAUSE_MS_MAX = 10_000;
const NO_USE = [
  status.INVALID_ARGUMENT, status.UNAUTHENTICATED, status.PERMISSION_DENIED, status.UNIMPLEMENTED,
];

// The trunks as they are, and the token of how far that is.
class Follower {
  trunks = new Map();
  token = "";
  pause = PAUSE_MS;

  // Goes on for ever; ends with an error that trying again does not help.
  async follow(client) {
    for (;;) {
      let wait = 0;
      try {
        await this.stream(client);
      } catch (error) {
        if (NO_USE.includes(error.code)) throw error;
        if (error.code === status.OUT_OF_RANGE) this.token = ""; // start with the initial state again
        wait = retryMs(error) ?? 0;
        console.log(`${status[error.code]} ${reason(error)}: go on`);
      }
      await sleep(Math.max(this.pause, wait));
      this.pause = Math.min(this.pause * 2, PAUSE_MS_MAX);
    }
  }

  // One stream, from the token on or from the initial state, until it is cut.
  async stream(client) {
    const trunks = this.token ? this.trunks : new Map();
    const request = { resume_token: this.token, initial_state: !this.token };
    const call = client.WatchSipTrunks(request, metadata());
    const silence = setTimeout(() => call.cancel(), SILENCE_MS_MAX);
    try {
      for await (const response of call) {
        silence.refresh();
        this.pause = PAUSE_MS;
        for (const event of response.events ?? []) take(trunks, event);
        if (response.resume_token) {
          // What has no token yet is not complete: it is kept only once it is.
          this.trunks = trunks;
          this.token = response.resume_token;
        }
        if (response.initial_state_complete) console.log(`${trunks.size} trunks`);
      }
    } finally {
      clearTimeout(silence);
    }
  }
}

// Does what an event says. It may come twice, so doing it twice must be the same.
function take(trunks, event) {
  const trunk = event.sip_trunk;
  if (event.kind === "DELETED") trunks.delete(trunk.id);
  else trunks.set(trunk.id, trunk);
  console.log(`${event.kind} ${trunk.id} revision=${event.revision} etag=${trunk.etag}`);
}

const [protos, target] = process.argv.slice(2);
new Follower().follow(connected(target, protos)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
