// @ts-check
/** Words for the place of a queued job in line. */

/** @type {Record<number, string>} */
const ENDINGS = { 1: "st", 2: "nd", 3: "rd" };

/** @param {number} place */
export function ordinal(place) {
  const teen = place % 100 >= 11 && place % 100 <= 13;
  return `${place}${(teen ? "" : ENDINGS[place % 10]) || "th"}`;
}
