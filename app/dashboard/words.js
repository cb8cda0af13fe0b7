// @ts-check
/** Numbers, times and names for display. */

/** @param {number | null | undefined} value */
export function count(value) {
  if (value === null || value === undefined) return "–";
  const [unit, name] =
    [[1e9, "B"], [1e6, "M"], [1e3, "K"]].find(([size]) => value >= Number(size)) || [1, ""];
  return `${Number((value / Number(unit)).toPrecision(4))}${name}`;
}

/** @param {number | null | undefined} value */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const [unit, name] =
    [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]].find(([s]) => value >= Number(s)) ||
    [1, "B"];
  return `${Number((value / Number(unit)).toPrecision(3))} ${name}`;
}

/** @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** @param {string} moment */
export const ago = (moment) => `${duration((Date.now() - Date.parse(moment)) / 1000)} ago`;

/** @param {number | null | undefined} part @param {number} [digits] */
export const percent = (part, digits = 1) =>
  part === null || part === undefined ? "–" : `${(100 * part).toFixed(digits)} %`;

/** @param {any} job */
export const modelName = (job) => `${job.model.source}:${job.model.ref}`;

/** A job's name, or else its model's. @param {any} job */
export const titleOf = (job) => job.labels?.name || job.model.ref.split("/").pop();

/** @param {any} job */
export function targetSize(job) {
  const { ratio, target_params: parameters, target_bytes: size } = job.compression;
  if (ratio !== null && ratio !== undefined) return `${Math.round(100 * ratio)} % removed`;
  if (parameters) return `${count(parameters)} parameters`;
  return bytes(size);
}

/** @type {Record<string, string>} */
const TEXT_NAMES = {
  pydoc: "Python docs",
  pycode: "Python code",
  chat: "Chat (generated)",
  self: "Free text (generated)",
  web: "Web pages (C4)",
};

/** A calibration or evaluation text as people call it. @param {string} text */
export const textName = (text) => TEXT_NAMES[text] || text;

/** @type {Record<string, string>} */
const DOMAIN_NAMES = { in: "in-domain", out: "out-of-domain" };

/** A text's domain relative to the calibration, empty if unknown. @param {string | null | undefined} domain */
export const domainName = (domain) => DOMAIN_NAMES[domain || ""] || "";

/** A divergence in nats per token. @param {number | null | undefined} kl */
export const nats = (kl) => (kl === null || kl === undefined ? "–" : kl.toPrecision(3));

export const ENDED = ["succeeded", "failed", "cancelled"];
