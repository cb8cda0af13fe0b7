// @ts-check
/** Place of a queued job in the line of its project. */

/** Workers take the highest priority first, among equals the oldest. @param {any} job @param {any[]} queued all queued jobs */
export function placeInLine(job, queued) {
  const ahead = queued.filter((other) => other.priority > job.priority || (other.priority === job.priority && other.id < job.id));
  return ahead.length + 1;
}

/** @type {Record<number, string>} */
const ENDINGS = { 1: "st", 2: "nd", 3: "rd" };

/** @param {number} place */
export function ordinal(place) {
  const teen = place % 100 >= 11 && place % 100 <= 13;
  return `${place}${(teen ? "" : ENDINGS[place % 10]) || "th"}`;
}
