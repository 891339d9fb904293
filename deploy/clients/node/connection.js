// What both programs share: a client, the caller's token, and how to read errors.
"use strict";

const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const protobuf = require("protobufjs");

const SERVICE_CONFIG = `
{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "siptrunk.v1.SipTrunkService"}],
    "waitForReady": true,
    "retryPolicy": {
      "maxAttempts": 5,
      "initialBackoff": "0.1s",
      "maxBackoff": "2s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }],
  "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}
}
`;
const OPTIONS = {
  "grpc.service_config": SERVICE_CONFIG,
  "grpc.keepalive_time_ms": 60000,
  "grpc.keepalive_timeout_ms": 20000,
  "grpc.keepalive_permit_without_calls": 1,
  "grpc.initial_reconnect_backoff_ms": 250,
  "grpc.max_reconnect_backoff_ms": 5000,
};
// Those of google.rpc, which proto-loader does not bring.
const { Status, ErrorInfo, BadRequest, RetryInfo } = protobuf.parse(`
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message FieldViolation { string field = 1; string description = 2; string reason = 3; }
  message BadRequest { repeated FieldViolation field_violations = 1; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
`, { keepCase: true }).root;

// A client, made once. `protos` is the directory that has siptrunk/v1.
function connected(target, protos) {
  const loaded = loader.loadSync("siptrunk/v1/sip_trunk_service.proto", {
    includeDirs: [protos], keepCase: true, enums: String, longs: String,
  });
  const { siptrunk } = grpc.loadPackageDefinition(loaded);
  return new siptrunk.v1.SipTrunkService(target, credentials(), OPTIONS);
}

// Whom to trust, and what to show where the server wants a certificate.
function credentials() {
  const [ca, cert, key] = ["TLS_CA", "TLS_CERT", "TLS_KEY"].map((name) => {
    const path = process.env[`TRUNKLINE_${name}`];
    return path ? fs.readFileSync(path) : null;
  });
  return ca ? grpc.credentials.createSsl(ca, key, cert) : grpc.credentials.createInsecure();
}

// What each call carries. grpc-js takes waitForReady from here, and not from the service config.
function metadata() {
  const found = new grpc.Metadata({ waitForReady: true });
  found.set("authorization", `Bearer ${process.env.TRUNKLINE_TOKEN}`);
  return found;
}

// The stable word for what went wrong; empty where a proxy or the network says it.
function reason(error) {
  return detail(error, ErrorInfo)?.reason ?? "";
}

// Everything that is wrong with a request: each has `field`, `reason`, `description`.
function violations(error) {
  return detail(error, BadRequest)?.field_violations ?? [];
}

// How long the server asks to wait; undefined where it does not.
function retryMs(error) {
  const delay = detail(error, RetryInfo)?.retry_delay;
  return delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6;
}

function detail(error, type) {
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  const found = packed && Status.decode(packed).details.find(
    (one) => one.type_url === `type.googleapis.com/google.rpc.${type.name}`);
  return found && type.decode(found.value);
}

module.exports = { connected, metadata, reason, violations, retryMs };
