// @ts-check
/** Methods that choose by masks, which they may train. The API does not say which they are. */

const TRAINING = ["spp", "disp"];

/** @param {string} method */
export const trainsMasks = (method) => TRAINING.includes(method);
