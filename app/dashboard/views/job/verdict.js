// @ts-check
/** Verdict on a result in words, from its figures. The thresholds are documented in docs/results.md. */

import { change, percent, times } from "../../format.js";
import { textName } from "../../words.js";

/** Largest perplexity ratio of each verdict, on the worst unseen text. @type {[number, string, "ok" | "warn" | "bad"][]} */
export const LEVELS = [
  [1.05, "Almost no quality loss.", "ok"],
  [1.15, "Small quality loss.", "ok"],
  [1.5, "Noticeable quality loss.", "warn"],
  [2, "Strong quality loss.", "bad"],
  [Infinity, "Severe quality loss.", "bad"],
];

/** @param {number} ratio compressed / dense */
const levelOf = (ratio) => LEVELS.find(([most]) => ratio <= most) || LEVELS[LEVELS.length - 1];

/** Colour of a perplexity ratio. @param {number | null | undefined} ratio @returns {"ok" | "warn" | "bad" | ""} */
export const qualityKind = (ratio) => (ratio === null || ratio === undefined ? "" : Number.isFinite(ratio) ? levelOf(ratio)[2] : "bad");

/** Colour of a speed-up: none where it is within the spread of the measurement. @param {any} phase a `PhaseComparison` @returns {"ok" | "bad" | ""} */
export function speedKind(phase) {
  const spread = Math.max(phase.dense_spread / phase.dense, phase.compressed_spread / phase.compressed) / 2 || 0;
  if (phase.ratio > 1 + spread) return "ok";
  return phase.ratio < 1 - spread ? "bad" : "";
}

/** The text with the largest perplexity ratio, an unseen one if there is any. @param {any} evaluation @returns {any} */
export function worstText(evaluation) {
  const texts = evaluation?.perplexity || [];
  const unseen = texts.filter((/** @type {any} */ text) => text.domain === "out");
  const ratio = (/** @type {any} */ text) => text.compressed / text.dense;
  return (unseen.length ? unseen : texts).reduce((/** @type {any} */ worst, /** @type {any} */ text) => (!worst || ratio(text) > ratio(worst) ? text : worst), null);
}

/**
 * @param {any} job @param {any} evaluation of the report, null if nothing was evaluated @param {import("../../words.js").Names} uploads
 * @returns {{ kind: "ok" | "info" | "warn" | "bad", title: string, text: string, loses: boolean }} `loses`: less should be removed
 */
export function verdict(job, evaluation, uploads) {
  const { result } = job;
  const gain = `The model is ${percent(1 - result.params_after / result.params_before)} smaller${result.speedup ? ` and its generation ${speedWords(result.speedup.decode)}` : ""}.`;
  const worst = worstText(evaluation);
  if (!worst) return { kind: "info", title: "Quality was not measured.", text: `${gain} Duplicate the job with an evaluation text to see what the removal costs.`, loses: false };
  const ratio = worst.compressed / worst.dense;
  const [, title, kind] = Number.isFinite(ratio) ? levelOf(ratio) : LEVELS[LEVELS.length - 1];
  const name = textName(worst.text, uploads);
  const seen = worst.domain === "in";
  const moved = ratio >= 3 ? `rose to ${change(ratio)} of the original's` : `${ratio >= 1 ? "rose" : "fell"} by ${change(ratio).slice(1)}`;
  const text = `Perplexity ${moved} on ${name}${worst.domain === "out" ? ", which the calibration had not seen" : ""}. ${gain}`;
  return {
    kind: seen && kind === "ok" ? "info" : kind,
    title: seen ? `${title.slice(0, -1)} on calibration text.` : title,
    text: seen ? `${text} Real use will look worse: evaluate on an unseen text.` : text,
    loses: kind !== "ok",
  };
}

/** @param {number} ratio */
function speedWords(ratio) {
  const words = times(ratio);
  return words === "unchanged" ? "as fast as before" : words;
}
