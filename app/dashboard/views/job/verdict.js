// @ts-check
/** Verdict on a result in words, from its figures. The thresholds are documented in docs/results.md. */

import { change, percent, times } from "../../format.js";
import { textName } from "../../words.js";

/**
 * Largest perplexity ratio on the worst unseen text and least retained task score of each verdict. They are those of reports and
 * model cards (intraslice_core/reports/verdict.py). @type {[number, number, string, "ok" | "warn" | "bad"][]}
 */
export const LEVELS = [
  [1.05, 0.98, "Almost no quality loss.", "ok"],
  [1.15, 0.95, "Small quality loss.", "ok"],
  [1.5, 0.9, "Noticeable quality loss.", "warn"],
  [2, 0.75, "Strong quality loss.", "bad"],
  [Infinity, -Infinity, "Severe quality loss.", "bad"],
];
/** Losses of a task within this many standard errors do not count. */
const STANDARD_ERRORS = 2;

/** Figures that are no numbers have the last level. @param {number} ratio compressed / dense @param {number} retained fraction of the task score */
const levelOf = (ratio, retained) => LEVELS.find(([most, least]) => ratio <= most && retained >= least) || LEVELS[LEVELS.length - 1];

/** Colour of a perplexity ratio. @param {number | null | undefined} ratio @returns {"ok" | "warn" | "bad" | ""} */
export const qualityKind = (ratio) => (ratio === null || ratio === undefined ? "" : levelOf(ratio, 1)[3]);

/** Colour of a speed-up: none where it is within the spread of the measurement. @param {any} phase a `PhaseComparison` @returns {"ok" | "bad" | ""} */
export function speedKind(phase) {
  const spread = Math.max(phase.dense_spread / phase.dense, phase.compressed_spread / phase.compressed) / 2 || 0;
  if (phase.ratio > 1 + spread) return "ok";
  return phase.ratio < 1 - spread ? "bad" : "";
}

/** The text with the largest perplexity ratio, an unseen one if there is any. @param {any} evaluation @returns {any} */
export function worstText(evaluation) {
  const texts = evaluation?.perplexity || [];
  const unseen = texts.filter((/** @type {any} */ text) => text.domain !== "in");
  const ratio = (/** @type {any} */ text) => text.compressed / text.dense;
  return (unseen.length ? unseen : texts).reduce((/** @type {any} */ worst, /** @type {any} */ text) => (!worst || ratio(text) > ratio(worst) ? text : worst), null);
}

/** Retained fraction of a task's score; 1 for a loss within its standard errors. @param {any} task a `TaskComparison` */
export function retainedScore(task) {
  const [reference, score] = task.higher_is_better ? [task.dense, task.compressed] : [task.compressed, task.dense];
  const loss = task.higher_is_better ? reference - score : task.compressed - task.dense;
  if (loss <= STANDARD_ERRORS * Math.hypot(task.dense_stderr || 0, task.compressed_stderr || 0)) return 1;
  return reference === 0 ? (score === 0 ? 1 : Infinity) : score / reference;
}

/** The task that retains the least of its score, null without tasks. @param {any} evaluation @returns {any} */
const worstTask = (evaluation) => (evaluation?.tasks || []).reduce((/** @type {any} */ worst, /** @type {any} */ task) => (!worst || retainedScore(task) < retainedScore(worst) ? task : worst), null);

/**
 * @param {any} job @param {any} evaluation of the report, null if nothing was evaluated @param {import("../../words.js").Names} uploads
 * @returns {{ kind: "ok" | "info" | "warn" | "bad", title: string, text: string, loses: boolean }} `loses`: less should be removed
 */
export function verdict(job, evaluation, uploads) {
  const { result } = job;
  const gain = `The model is ${percent(1 - result.params_after / result.params_before)} smaller${result.speedup ? ` and its generation ${speedWords(result.speedup.decode)}` : ""}.`;
  const worst = worstText(evaluation), task = worstTask(evaluation);
  if (!worst && !task) return { kind: "info", title: "Quality was not measured.", text: `${gain} Duplicate the job with an evaluation text to see what the removal costs.`, loses: false };
  const retained = task ? retainedScore(task) : 1;
  const [, , title, kind] = levelOf(worst ? worst.compressed / worst.dense : 1, retained);
  const seen = worst?.domain === "in";
  const reasons = [
    worst && textReason(worst, uploads),
    retained < 1 && `${task.task} keeps ${percent(retained)} of the original's ${task.metric}, the least of all tasks.`,
    gain,
    seen && "Real use will look worse: evaluate on an unseen text.",
  ];
  return {
    kind: seen && kind === "ok" ? "info" : kind,
    title: seen ? `${title.slice(0, -1)} on calibration text.` : title,
    text: reasons.filter(Boolean).join(" "),
    loses: kind !== "ok",
  };
}

/** @param {any} text a `PerplexityComparison` @param {import("../../words.js").Names} uploads */
function textReason(text, uploads) {
  const ratio = text.compressed / text.dense;
  const moved = ratio >= 3 ? `rose to ${change(ratio)} of the original's` : `${ratio >= 1 ? "rose" : "fell"} by ${change(ratio).slice(1)}`;
  return `Perplexity ${moved} on ${textName(text.text, uploads)}${text.domain === "out" ? ", which the calibration had not seen" : ""}.`;
}

/** @param {number} ratio */
function speedWords(ratio) {
  const words = times(ratio);
  return words === "unchanged" ? "as fast as before" : words;
}
