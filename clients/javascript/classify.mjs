#!/usr/bin/env node
// Classifies an image, a text or both: an example of a client of delo in JavaScript, and a module to take over.
import { randomUUID } from "node:crypto";
import { readFileSync, realpathSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const PROTOS = fileURLToPath(new URL("../../proto", import.meta.url));
const definition = protoLoader.loadSync("delo/v1/classifier.proto", { includeDirs: [PROTOS], longs: Number, enums: String, arrays: true });
export const { Classifier } = grpc.loadPackageDefinition(definition).delo.v1;

// What grpc-status-details-bin holds, as far as it is read here.
const details = protobuf.parse(`
  syntax = "proto3";
  package google;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
`, { keepCase: true }).root;
const Status = details.lookupType("google.Status");
const RetryInfo = details.lookupType("google.RetryInfo");

/**
 * A client of the server at `host:port`. It is TLS with `ca` or `clientCert`; these and `clientKey` are PEM, as
 * Buffers.
 */
export function connect(server, { ca, clientCert, clientKey } = {}) {
  const tls = ca !== undefined || clientCert !== undefined;
  const credentials = tls ? grpc.credentials.createSsl(ca, clientKey, clientCert) : grpc.credentials.createInsecure();
  // By default a failed connection is tried again after a second, longer than all attempts of a call take.
  return new Classifier(server, credentials, { "grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 5000 });
}

/**
 * Classifies one sample. `request` is a ClassifyRequest: `{ image: Buffer, text: "…", topK: 2, … }`. Tries again after
 * UNAVAILABLE and after RESOURCE_EXHAUSTED with a time to retry, up to `attempts` times in all and within
 * `timeoutSeconds`.
 *
 * Returns the ClassifyResponse. Throws gRPC's error, with `code`, `details` and, where the server named it,
 * `retryAfterSeconds`.
 */
export async function classify(client, request, { token, timeoutSeconds = 30, attempts = 4 } = {}) {
  const deadline = Date.now() + timeoutSeconds * 1000;
  // By the request's id the server decides which version of a task on trial answers: all attempts have the same.
  const sample = { ...request, requestId: request.requestId || randomUUID() };
  const metadata = new grpc.Metadata();
  if (token) metadata.set("authorization", `Bearer ${token.trim()}`);
  for (let attempt = 1; ; attempt++) {
    try {
      return await new Promise((resolve, reject) => {
        client.classify(sample, metadata, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
      });
    } catch (error) {
      error.retryAfterSeconds = retryAfterSeconds(error);
      const wait = waitSeconds(error, attempt);
      if (wait === undefined || attempt >= attempts || Date.now() + wait * 1000 >= deadline) throw error;
      await sleep(wait * 1000);
    }
  }
}

/** What google.rpc.RetryInfo says; undefined without it. */
function retryAfterSeconds(error) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (bytes === undefined) return undefined;
  try {
    const info = Status.decode(bytes).details.find(({ type_url }) => type_url.endsWith("/google.rpc.RetryInfo"));
    if (info === undefined) return undefined;
    const delay = RetryInfo.decode(info.value).retry_delay;
    return Number(delay?.seconds ?? 0) + (delay?.nanos ?? 0) / 1e9;
  } catch {
    // Details that cannot be read count as absent.
    return undefined;
  }
}

/** Seconds until the next attempt; undefined: trying again is no use. */
function waitSeconds(error, attempt) {
  const unavailable = error.code === grpc.status.UNAVAILABLE;
  if (!unavailable && error.code !== grpc.status.RESOURCE_EXHAUSTED) return undefined;
  const seconds = error.retryAfterSeconds ?? (unavailable ? Math.min(5, 0.1 * 2 ** (attempt - 1)) : undefined);
  // Clients that were refused together do not come back together.
  return seconds === undefined ? undefined : seconds * (1 + Math.random() / 4);
}

async function main() {
  const { values } = parseArgs({
    options: {
      server: { type: "string", default: "127.0.0.1:50051" },
      image: { type: "string" },
      text: { type: "string" },
      task: { type: "string" },
      "top-k": { type: "string" },
      timeout: { type: "string", default: "30" },
      ca: { type: "string" },
    },
  });
  const client = connect(values.server, { ca: values.ca && readFileSync(values.ca) });
  try {
    const request = { text: values.text, task: values.task };
    if (values.image !== undefined) request.image = readFileSync(values.image);
    if (values["top-k"] !== undefined) request.topK = Number(values["top-k"]);
    const options = { token: process.env.DELO_TOKEN, timeoutSeconds: Number(values.timeout) };
    console.log(JSON.stringify(await classify(client, request, options), null, 2));
  } finally {
    client.close();
  }
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  main().catch((error) => {
    console.error(`classify: ${error.message}`);
    process.exitCode = 1;
  });
}
