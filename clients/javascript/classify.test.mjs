// Against the server itself (DELO_BINARY, else target/release/delo or target/debug/delo), and against a fake one.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { after, before, beforeEach, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import grpc from "@grpc/grpc-js";
import protobuf from "protobufjs";

import { Classifier, classify, connect } from "./classify.mjs";

const repository = fileURLToPath(new URL("../..", import.meta.url));
const PEACH = `${repository}data/emoji-cmml/images/1f351-noto.png`;

describe("the server", () => {
  let server, address, client;

  before(async () => {
    const places = process.env.DELO_BINARY ? [process.env.DELO_BINARY] : ["release", "debug"].map((of) => `${repository}target/${of}/delo`);
    const binary = places.find((place) => existsSync(place));
    assert.ok(binary, `no server: ${places.join(" and ")} do not exist; build it or set DELO_BINARY`);
    // The settings of whoever runs the tests are not meant for this server.
    const others = Object.entries(process.env).filter(([key]) => !key.toUpperCase().startsWith("DELO_"));
    const settings = { DELO_SERVER__LISTEN: "127.0.0.1:0", DELO_ADMIN__LISTEN: "off", DELO_METRICS__LISTEN: "off", DELO_LOGGING__FORMAT: "json" };
    server = spawn(binary, ["serve"], { env: { ...Object.fromEntries(others), ...settings }, stdio: ["ignore", "ignore", "pipe"] });
    for await (const line of createInterface({ input: server.stderr })) {
      const entry = JSON.parse(line);
      if (entry.message === "serving") {
        address = entry.classifier;
        break;
      }
    }
    assert.ok(address, "the server ended before it served");
    // A full pipe would block the server.
    server.stderr.resume();
    client = connect(address);
  });
  after(() => {
    client?.close();
    server?.kill();
  });

  test("classifies a text", async () => {
    const answer = await classify(client, { text: "slice of pizza with cheese", topK: 2 });
    assert.equal(answer.task, "food-drink");
    assert.equal(answer.scores[0].label, "food-prepared");
    assert.equal(answer.scores.length, 2);
    assert.equal(answer.modalities.image, "PROXIED");
    assert.ok(answer.routing.probability > 0.9);
    assert.equal(answer.partitionVersion, 1);
  });

  test("classifies an image with a text", async () => {
    const answer = await classify(client, { image: readFileSync(PEACH), text: "peach", requestId: "lunch" });
    assert.equal(answer.requestId, "lunch");
    assert.equal(answer.scores[0].label, "food-fruit");
    assert.equal(answer.modalities.image, "PRESENT");
  });

  test("refuses what is no image, at the first attempt", async () => {
    await assert.rejects(classify(client, { image: Buffer.from("no image") }), { code: grpc.status.INVALID_ARGUMENT, retryAfterSeconds: undefined });
  });

  test("classifies from the command line", async () => {
    const script = fileURLToPath(new URL("classify.mjs", import.meta.url));
    const run = (...args) => promisify(execFile)(process.execPath, [script, "--server", address, ...args]);
    const { stdout } = await run("--image", PEACH, "--text", "peach", "--top-k", "1");
    assert.deepEqual(JSON.parse(stdout).scores.map(({ label }) => label), ["food-fruit"]);
    await assert.rejects(run("--text", "a rocket", "--task", "space"), (error) => error.code === 1 && error.stderr.includes("NOT_FOUND"));
  });
});

describe("a server that refuses", () => {
  let server, client, refusals, received, answerAfter;

  before(async () => {
    server = new grpc.Server();
    server.addService(Classifier.service, {
      classify: ({ request, metadata }, answer) => {
        received.push({ requestId: request.requestId, authorization: metadata.get("authorization")[0] });
        const refusal = refusals.shift();
        setTimeout(() => (refusal ? answer(refusal) : answer(null, { requestId: request.requestId, task: "t" })), answerAfter);
      },
    });
    const port = await promisify(server.bindAsync.bind(server))("127.0.0.1:0", grpc.ServerCredentials.createInsecure());
    client = connect(`127.0.0.1:${port}`);
  });
  beforeEach(() => {
    [refusals, received, answerAfter] = [[], [], 0];
  });
  after(() => {
    client.close();
    server.forceShutdown();
  });

  const took = async (call) => {
    const start = Date.now();
    await call.catch(() => {});
    return Date.now() - start;
  };

  test("is asked again after the time that it names, with the same request id and token", async () => {
    refusals = [refusal(grpc.status.RESOURCE_EXHAUSTED, 200), refusal(grpc.status.RESOURCE_EXHAUSTED, 300)];
    const call = classify(client, { text: "pizza" }, { token: "secret\n" });
    const milliseconds = await took(call);
    assert.ok(milliseconds >= 500 && milliseconds < 2500, `${milliseconds} ms`);
    assert.equal(received.length, 3);
    assert.deepEqual(new Set(received.map(({ requestId }) => requestId)), new Set([(await call).requestId]));
    assert.equal(received[2].authorization, "Bearer secret");
  });

  test("is asked again while it is unavailable, four times in all", async () => {
    refusals = Array.from({ length: 9 }, () => refusal(grpc.status.UNAVAILABLE));
    await assert.rejects(classify(client, { text: "pizza" }), { code: grpc.status.UNAVAILABLE });
    assert.equal(received.length, 4);
  });

  test("is not asked again where it names no time, or refuses for another reason", async () => {
    for (const code of [grpc.status.RESOURCE_EXHAUSTED, grpc.status.INTERNAL]) {
      refusals = [refusal(code)];
      await assert.rejects(classify(client, { text: "pizza" }), { code });
    }
    assert.equal(received.length, 2);
  });

  test("is not waited for beyond the deadline", async () => {
    refusals = [refusal(grpc.status.RESOURCE_EXHAUSTED, 60_000)];
    const call = classify(client, { text: "pizza" }, { timeoutSeconds: 5 });
    assert.ok((await took(call)) < 2000);
    await assert.rejects(call, { code: grpc.status.RESOURCE_EXHAUSTED, retryAfterSeconds: 60 });
  });

  test("has until the deadline to answer", async () => {
    answerAfter = 1000;
    await assert.rejects(classify(client, { text: "pizza" }, { timeoutSeconds: 0.2 }), { code: grpc.status.DEADLINE_EXCEEDED });
  });
});

/** A status, with google.rpc.RetryInfo where milliseconds are given. */
function refusal(code, milliseconds) {
  const metadata = new grpc.Metadata();
  if (milliseconds !== undefined) {
    // Written field by field, another way than the client reads it.
    const message = (write) => write(protobuf.Writer.create()).finish();
    const delay = message((w) => w.uint32(8).int64(Math.floor(milliseconds / 1000)).uint32(16).int32((milliseconds % 1000) * 1e6));
    const info = message((w) => w.uint32(10).bytes(delay));
    const any = message((w) => w.uint32(10).string("type.googleapis.com/google.rpc.RetryInfo").uint32(18).bytes(info));
    metadata.set("grpc-status-details-bin", Buffer.from(message((w) => w.uint32(8).int32(code).uint32(26).bytes(any))));
  }
  return { code, details: "no", metadata };
}
