// @ts-check
/** Client of the public API: requests and event streams. */

import { PROBLEM_WORDS } from "./problems.js";

const STORED = "intraslice-key";
const POLL_SECONDS = 20;

/** An error response; `problems` are those of single fields. */
export class ApiError extends Error {
  /** @param {number} status @param {any} problem */
  constructor(status, problem) {
    super(PROBLEM_WORDS[problem?.code] || problem?.detail || `HTTP ${status}`);
    this.status = status;
    this.code = problem?.code;
    this.detail = problem?.detail;
    /** @type {import("./problems.js").FieldProblem[]} */
    this.problems = problem?.errors || [];
  }
}

/** The service, or the artifact store, did not answer. */
export class Unavailable extends Error {}

/** @param {string | null} key */
export function keepKey(key) {
  if (key === null) sessionStorage.removeItem(STORED);
  else sessionStorage.setItem(STORED, key);
}

export const hasKey = () => sessionStorage.getItem(STORED) !== null;

/** @returns {Record<string, string>} */
function headers() {
  const key = sessionStorage.getItem(STORED);
  return key === null ? {} : { Authorization: `Bearer ${key}` };
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (/** @type {Error} */ (error).name === "AbortError") throw error;
    throw new Unavailable("The service is not responding.");
  }
  if (response.status >= 502 && response.status <= 504) throw new Unavailable("The service is unavailable.");
  if (!response.ok && response.status !== 304) {
    throw new ApiError(response.status, await response.json().catch(() => null));
  }
  return response;
}

/** @param {string} path @param {AbortSignal} [signal] @returns {Promise<any>} */
export const get = async (path, signal) => (await send(path, { signal })).json();

/** @param {string} path @returns {Promise<string>} */
export const getPage = async (path) =>
  (await send(path, { headers: { Accept: "text/html" } })).text();

/**
 * @param {string} path
 * @param {any} [body]
 * @param {Record<string, string>} [more]
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function post(path, body, more = {}, signal) {
  /** @type {Record<string, string>} */
  const json = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await send(path, {
    method: "POST",
    body: body === undefined ? undefined : JSON.stringify(body),
    headers: { ...json, ...more },
    signal,
  });
  return response.status === 204 ? null : response.json();
}

/** @param {string} path @param {any} body @returns {Promise<any>} */
export const patch = async (path, body) =>
  (await send(path, { method: "PATCH", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } })).json();

/**
 * Upload without the API key, which a bucket must not see: the signed link is the permission.
 * @param {string} url @param {Blob} content @param {AbortSignal} signal
 */
export async function put(url, content, signal) {
  if (url.startsWith("/")) return send(url, { method: "PUT", body: content, signal });
  const response = await fetch(url, { method: "PUT", body: content, signal }).catch((error) => {
    if (error.name === "AbortError") throw error;
    const host = new URL(url).host;
    throw new Unavailable(`The artifact store at ${host} is unreachable from here, or its CORS rules reject this page. With INTRASLICE_DOWNLOADS=proxy on the server, uploads go through the API.`);
  });
  if (!response.ok) throw new ApiError(response.status, { detail: `The artifact store at ${new URL(url).host} returned HTTP ${response.status}.` });
  return response;
}

/** @param {string} path */
export const remove = (path) => send(path, { method: "DELETE" });

/**
 * Report a job's events and log lines and, between them, its state. An interrupted stream resumes after the last
 * event; where streams do not get through, the job is polled.
 *
 * @param {string} id
 * @param {(kind: "event" | "log" | "live" | "unavailable" | "available", data: any) => void} report
 * @param {AbortSignal} signal
 */
export async function watch(id, report, signal) {
  let after = 0;
  let failures = 0;
  while (!signal.aborted) {
    try {
      const response = await send(`/v1/jobs/${id}/events/stream?logs=true`, {
        headers: { "Last-Event-ID": String(after), Accept: "text/event-stream" },
        signal,
      });
      if (response.status === 204 || !response.body) return;
      report("available", null);
      failures = 0;
      for await (const message of messages(response.body)) {
        if (message.id) after = Math.max(after, Number(message.id));
        if (!message.data) continue;
        report(message.event === "live" || message.event === "log" ? message.event : "event", JSON.parse(message.data));
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError) throw error;
      failures += 1;
      report("unavailable", null);
      if (failures > 2 && (await poll(id, after, report, signal).catch(() => false))) return;
    }
    await pause(Math.min(0.5 * 2 ** failures, 8), signal);
  }
}

/**
 * Poll once, for when the stream fails.
 * @param {string} id @param {number} after
 * @param {(kind: "event" | "log" | "live" | "unavailable" | "available", data: any) => void} report
 * @param {AbortSignal} signal
 * @returns {Promise<boolean>} whether the job has ended
 */
async function poll(id, after, report, signal) {
  const [job, events, log] = await Promise.all([
    get(`/v1/jobs/${id}?wait=${POLL_SECONDS}`, signal),
    get(`/v1/jobs/${id}/events?after=${after}`, signal),
    get(`/v1/jobs/${id}/logs?after=${after}`, signal),
  ]);
  report("available", null);
  report("live", job);
  for (const event of events.data) report("event", event);
  for (const line of log.data) report("log", line);
  return ["succeeded", "failed", "cancelled"].includes(job.state);
}

/** @param {ReadableStream<Uint8Array>} body */
async function* messages(body) {
  const decoder = /** @type {any} */ (new TextDecoderStream());
  /** @type {ReadableStreamDefaultReader<string>} */
  const reader = body.pipeThrough(decoder).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r\n", "\n");
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      yield message(text.slice(0, end));
      text = text.slice(end + 2);
    }
  }
}

/** @param {string} block */
function message(block) {
  const fields = { id: "", event: "", data: "" };
  for (const line of block.split("\n")) {
    const at = line.indexOf(":");
    if (at < 1) continue;
    const name = line.slice(0, at);
    const value = line.slice(at + 1).replace(/^ /, "");
    if (name === "data") fields.data += fields.data ? `\n${value}` : value;
    else if (name === "id" || name === "event") fields[name] = value;
  }
  return fields;
}

/** @param {number} seconds @param {AbortSignal} signal */
const pause = (seconds, signal) =>
  new Promise((done) => {
    const timer = setTimeout(done, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      done(undefined);
    });
  });
