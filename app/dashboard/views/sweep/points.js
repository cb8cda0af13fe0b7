// @ts-check
/** Results of a sweep: their figures on one text, and the one to recommend. */

import { methodTitle } from "../../hooks.js";
import { share } from "../../format.js";

/** Largest perplexity ratio of a recommended result. It is documented in docs/results.md. */
export const ACCEPTED = 1.2;

/** Texts on which the results were scored, the unseen ones first. @param {any} sweep @returns {string[]} */
export function textsOf(sweep) {
  const domains = new Map(sweep.pareto.flatMap((/** @type {any} */ point) => point.quality.map((/** @type {any} */ score) => [score.text, score.domain])));
  return Object.keys(sweep.dense?.quality || {}).sort((a, b) => Number(domains.get(b) === "out") - Number(domains.get(a) === "out"));
}

/** Quality of a result on a text. @param {any} point @param {string} text */
export const qualityOn = (point, text) => point.quality.find((/** @type {any} */ score) => score.text === text);

/** Name of a result: its percentage, with the method where several are compared. @param {any} sweep @param {any} point @param {any} offer */
export const pointName = (sweep, point, offer) => `${point.ratio === null ? "–" : share(point.ratio)}${sweep.methods.length > 1 ? ` ${methodTitle(offer, point.method)}` : ""}`;

/**
 * The smallest result whose perplexity rose by at most a fifth on the text, else the one that rose least; null if no
 * result is scored. A result that another beats is not recommended.
 * @param {any} sweep @param {string} text
 */
export function recommended(sweep, text) {
  const scored = sweep.pareto.filter((/** @type {any} */ point) => qualityOn(point, text) && !point.dominated && point.bytes_after !== null);
  if (!scored.length) return null;
  const ratio = (/** @type {any} */ point) => qualityOn(point, text).ratio;
  const accepted = scored.filter((/** @type {any} */ point) => ratio(point) <= ACCEPTED);
  if (accepted.length) return accepted.reduce((/** @type {any} */ best, /** @type {any} */ point) => (point.bytes_after < best.bytes_after ? point : best));
  return scored.reduce((/** @type {any} */ best, /** @type {any} */ point) => (ratio(point) < ratio(best) ? point : best));
}

/** The next smaller result of the same method; null if there is none. @param {any} sweep @param {any} point @param {string} text */
export const nextSmaller = (sweep, point, text) =>
  sweep.pareto.filter((/** @type {any} */ other) => other.method === point.method && qualityOn(other, text) && other.bytes_after < point.bytes_after)
    .sort((/** @type {any} */ a, /** @type {any} */ b) => b.bytes_after - a.bytes_after)[0] || null;
