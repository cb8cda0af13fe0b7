// @ts-check
/** What earlier jobs of the project cost in quality, with settings like the form's. */

import { get } from "../api.js";
import { useLoaded } from "../hooks.js";

/** Largest difference of the removed share of jobs that count as alike. */
const NEAR = 0.026;

/**
 * Perplexity ratios of succeeded jobs on the same model, with the same method, target and first evaluation text, and a
 * similar percentage; ascending.
 * @param {import("./request.js").Form} form @param {boolean} valid whether the form was validated: a name that is being typed is not looked up
 * @returns {number[]}
 */
export function usePastRatios(form, valid) {
  const ref = valid && form.size === "ratio" ? form.ref.trim() : "";
  const { data } = useLoaded((signal) => (ref ? get(`/v1/jobs?state=succeeded&limit=100&model=${encodeURIComponent(ref)}`, signal) : Promise.resolve(null)), [ref]);
  return (data?.data || []).filter((/** @type {any} */ job) => alike(job, form)).map((/** @type {any} */ job) => job.result.perplexity_after / job.result.perplexity_before)
    .filter(Number.isFinite).sort((/** @type {number} */ a, /** @type {number} */ b) => a - b);
}

/** @param {any} job @param {import("./request.js").Form} form */
function alike(job, form) {
  const { compression, evaluation, model, result } = job;
  return model.source === form.source && compression.method === form.method && compression.target === form.target &&
    Math.abs((compression.ratio ?? -1) - form.ratio) <= NEAR && evaluation?.perplexity[0] === form.evaluate[0] && Boolean(result?.perplexity_before && result.perplexity_after);
}

/** @param {number[]} ratios ascending */
export function pastText(ratios) {
  if (!ratios.length) return null;
  const [least, most] = [ratios[0], ratios[ratios.length - 1]].map((ratio) => ratio.toFixed(2));
  return `×${least}${least === most ? "" : `–${most}`}, from ${ratios.length} past ${ratios.length === 1 ? "run" : "runs"}`;
}
