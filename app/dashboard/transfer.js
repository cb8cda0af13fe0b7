// @ts-check
/** Uploads of models and texts: hashed in the browser, sent in parts, resumed after interruptions. */

import { Unavailable, get, post, put } from "./api.js";

const CHUNK = 4 * 2 ** 20;
const TRIES = 8;
/** File names that the service accepts for a model; code and pickles are not uploaded. */
const MODEL_FILES = /^[A-Za-z0-9][\w.-]*\.(safetensors|json|model|txt|jinja)$|^LICENSE[\w.-]*$/;

/**
 * @typedef {{ stage: "reading" | "sending" | "checking", done: number, total: number }} Progress
 * @typedef {{ kind: "model" | "text", name: string, files: File[] }} Parcel
 */

/**
 * Split a directory into a model's files and the names of all others.
 * @param {File[]} selected
 * @returns {{ accepted: File[], skipped: string[] }}
 */
export function modelFiles(selected) {
  const inside = (/** @type {File} */ file) => file.webkitRelativePath.split("/").length <= 2;
  const fits = (/** @type {File} */ file) => inside(file) && MODEL_FILES.test(file.name);
  return {
    accepted: selected.filter(fits),
    skipped: selected.filter((file) => !fits(file)).map((file) => file.webkitRelativePath || file.name),
  };
}

/**
 * Hash and upload files, and wait until the service has verified them.
 * @param {Parcel} parcel @param {(progress: Progress) => void} report @param {AbortSignal} signal
 * @returns {Promise<any>} the upload
 */
export async function uploadParcel(parcel, report, signal) {
  const total = parcel.files.reduce((sum, file) => sum + file.size, 0);
  const files = await describe(parcel.files, (done) => report({ stage: "reading", done, total }), signal);
  const upload = (await findInterrupted(parcel.kind, files)) ||
    (await post("/v1/uploads", { kind: parcel.kind, name: parcel.name, files }, {}, signal));
  await sendParts(upload.id, parcel.files, (done) => report({ stage: "sending", done, total }), signal);
  report({ stage: "checking", done: 0, total });
  await post(upload.urls.complete, undefined, {}, signal);
  for (;;) {
    const checked = await get(upload.urls.self, signal);
    if (checked.state === "ready") return checked;
    if (checked.error) throw new Error(checked.error.message);
    await pause(0.5);
  }
}

/** Names, sizes and SHA-256 of the files. @param {File[]} files @param {(done: number) => void} report @param {AbortSignal} signal */
async function describe(files, report, signal) {
  const { sha256 } = await import("./vendor/noble/sha2.js");
  let done = 0;
  const descriptions = [];
  for (const file of files) {
    const hash = sha256.create();
    for (let at = 0; at < file.size; at += CHUNK) {
      signal.throwIfAborted();
      const piece = file.slice(at, at + CHUNK);
      hash.update(new Uint8Array(await piece.arrayBuffer()));
      report((done += piece.size));
    }
    descriptions.push({ name: file.name, bytes: file.size, sha256: hex(hash.digest()) });
  }
  return descriptions;
}

/** @param {Uint8Array} bytes */
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/**
 * Find an interrupted upload of exactly these files; null if there is none.
 * @param {string} kind @param {{ name: string, sha256: string }[]} files
 */
async function findInterrupted(kind, files) {
  const expected = files.map((file) => `${file.name} ${file.sha256}`).join("\n");
  const { data } = await get("/v1/uploads?limit=50");
  for (const { urls } of data.filter((/** @type {any} */ upload) => upload.kind === kind && upload.state === "open")) {
    const upload = await get(urls.self);
    const present = upload.files.map((/** @type {any} */ file) => `${file.name} ${file.sha256}`);
    if (present.join("\n") === expected) return upload;
  }
  return null;
}

/** @param {string} id @param {File[]} files @param {(done: number) => void} report @param {AbortSignal} signal */
async function sendParts(id, files, report, signal) {
  let done = 0;
  for (const [index, file] of files.entries()) {
    // Fetched again for each file, because links to parts expire.
    const upload = await get(`/v1/uploads/${id}`, signal);
    for (const part of upload.files[index].parts) {
      const start = part.number * upload.part_bytes;
      if (part.url) await withRetries(() => put(part.url, file.slice(start, start + part.bytes), signal));
      report((done += part.bytes));
    }
  }
}

/** Retry while nobody answers. @param {() => Promise<any>} work */
async function withRetries(work) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Unavailable) || tries === TRIES) throw error;
      await pause(Math.min(0.5 * 2 ** tries, 8));
    }
  }
}

/** @param {number} seconds */
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
