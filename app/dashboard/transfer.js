// @ts-check
/** Sending models and texts: hashed here, sent in parts, gone on with where it was broken off. */

import { Away, get, post, put } from "./api.js";

const CHUNK = 4 * 2 ** 20;
const TRIES = 8;
/** What the service takes of a model's directory; code and pickles stay at home. */
const MODEL_FILES = /^[A-Za-z0-9][\w.-]*\.(safetensors|json|model|txt|jinja)$|^LICENSE[\w.-]*$/;

/**
 * @typedef {{ stage: "reading" | "sending" | "checking", done: number, total: number }} Progress
 * @typedef {{ kind: "model" | "text", name: string, files: File[] }} Parcel
 */

/**
 * The files of a chosen directory that a model is made of, and the names of the others.
 * @param {File[]} chosen
 * @returns {{ taken: File[], left: string[] }}
 */
export function modelFiles(chosen) {
  const inside = (/** @type {File} */ file) => file.webkitRelativePath.split("/").length <= 2;
  const fits = (/** @type {File} */ file) => inside(file) && MODEL_FILES.test(file.name);
  return {
    taken: chosen.filter(fits),
    left: chosen.filter((file) => !fits(file)).map((file) => file.webkitRelativePath || file.name),
  };
}

/**
 * Everything from the disk to an upload that jobs can name.
 * @param {Parcel} parcel @param {(progress: Progress) => void} tell @param {AbortSignal} signal
 * @returns {Promise<any>} the upload
 */
export async function sendParcel(parcel, tell, signal) {
  const total = parcel.files.reduce((sum, file) => sum + file.size, 0);
  const files = await announced(parcel.files, (done) => tell({ stage: "reading", done, total }), signal);
  const upload = (await begun(parcel.kind, files)) ||
    (await post("/v1/uploads", { kind: parcel.kind, name: parcel.name, files }, {}, signal));
  await sendParts(upload.id, parcel.files, (done) => tell({ stage: "sending", done, total }), signal);
  tell({ stage: "checking", done: 0, total });
  await post(upload.urls.complete, undefined, {}, signal);
  for (;;) {
    const found = await get(upload.urls.self, signal);
    if (found.state === "ready") return found;
    if (found.error) throw new Error(found.error.message);
    await pause(0.5);
  }
}

/** @param {File[]} files @param {(done: number) => void} tell @param {AbortSignal} signal */
async function announced(files, tell, signal) {
  const { sha256 } = await import("./vendor/noble/sha2.js");
  let done = 0;
  const found = [];
  for (const file of files) {
    const hash = sha256.create();
    for (let at = 0; at < file.size; at += CHUNK) {
      signal.throwIfAborted();
      const piece = file.slice(at, at + CHUNK);
      hash.update(new Uint8Array(await piece.arrayBuffer()));
      tell((done += piece.size));
    }
    found.push({ name: file.name, bytes: file.size, sha256: hex(hash.digest()) });
  }
  return found;
}

/** @param {Uint8Array} bytes */
const hex = (bytes) => Array.from(bytes, (one) => one.toString(16).padStart(2, "0")).join("");

/**
 * An upload of just these files that was broken off; null if there is none.
 * @param {string} kind @param {{ name: string, sha256: string }[]} files
 */
async function begun(kind, files) {
  const wanted = files.map((one) => `${one.name} ${one.sha256}`).join("\n");
  const { data } = await get("/v1/uploads?limit=50");
  for (const one of data.filter((/** @type {any} */ one) => one.kind === kind && one.state === "open")) {
    const upload = await get(one.urls.self);
    const there = upload.files.map((/** @type {any} */ file) => `${file.name} ${file.sha256}`);
    if (there.join("\n") === wanted) return upload;
  }
  return null;
}

/** @param {string} id @param {File[]} files @param {(done: number) => void} tell @param {AbortSignal} signal */
async function sendParts(id, files, tell, signal) {
  let done = 0;
  for (const [index, file] of files.entries()) {
    // Asked for each file: links to parts expire.
    const upload = await get(`/v1/uploads/${id}`, signal);
    for (const part of upload.files[index].parts) {
      const start = part.number * upload.part_bytes;
      if (part.url) await patiently(() => put(part.url, file.slice(start, start + part.bytes), signal));
      tell((done += part.bytes));
    }
  }
}

/** @param {() => Promise<any>} work again while nobody answers */
async function patiently(work) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Away) || tries === TRIES) throw error;
      await pause(Math.min(0.5 * 2 ** tries, 8));
    }
  }
}

/** @param {number} seconds */
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
