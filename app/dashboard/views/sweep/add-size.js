// @ts-check
/** Form that adds ratios to a sweep. */

import { html, useState } from "../../vendor/htm-preact.js";
import { post } from "../../api.js";
import { Action } from "../../components/actions.js";
import { Card } from "../../components/basics.js";
import { Field, describedBy } from "../../components/controls.js";

const NUMBER = /^(\d+\.?\d*|\.\d+)$/;
/** More than rounding to six digits changes a ratio, less than the distance of two rounded ones. */
const ROUNDING = 6e-7;

/** A ratio as a percentage with all of its digits. @param {number} ratio */
const percentage = (ratio) => `${Number((100 * ratio).toFixed(4))} %`;

/** The ratio of a percentage, rounded to six digits; null if it is none strictly between 0 and 100. @param {string} part */
function ratioOf(part) {
  const ratio = NUMBER.test(part) ? Number((Number(part) / 100).toFixed(6)) : 0;
  return ratio > 0 && ratio < 1 ? ratio : null;
}

/**
 * Ratios of a text and the parts that are no percentages. A comma between digits does not separate: 12,5 may be meant as 12.5.
 * @param {string} text
 */
function read(text) {
  const parts = text.split(/(?:[\s;%]+,?|,(?!\d))+/).filter(Boolean);
  const wrong = parts.filter((part) => ratioOf(part) === null);
  return { entered: parts.map(ratioOf).filter((ratio) => ratio !== null), wrong };
}

/**
 * Ratios of a text, each once, for which the sweep lacks jobs, the number of these jobs, and the parts of the text that are no percentages.
 * @param {any} sweep @param {string} text
 */
export function additions(sweep, text) {
  const { entered, wrong } = read(text);
  /** The sweep's own ratio where it has one that differs in digits which cannot be entered. @param {number} ratio */
  const own = (ratio) => [...sweep.ratios, ratio].find((other) => Math.abs(other - ratio) < ROUNDING);
  /** Number of methods without a job. @param {number} ratio */
  const missing = (ratio) => sweep.methods.filter((/** @type {string} */ method) => !sweep.jobs.some((/** @type {any} */ job) => job.compression.method === method && job.compression.ratio === ratio)).length;
  const ratios = [...new Set(entered.map(own))].filter(missing);
  return { ratios, jobs: wrong.length ? 0 : ratios.map(missing).reduce((sum, count) => sum + count, 0), wrong };
}

/** @param {{ sweep: any, close: () => void, reload: () => void }} props */
export function AddSize({ sweep, close, reload }) {
  const [text, setText] = useState("");
  /** @type {number[]} */
  const present = [...new Set(sweep.jobs.map((/** @type {any} */ job) => job.compression.ratio))];
  const { ratios, jobs, wrong } = additions(sweep, text);
  const hint = `With all other settings of the sweep. It has ${present.map(percentage).join(", ") || "no jobs"}.`;
  const fault = wrong.length ? `${wrong.join(" and ")}: enter numbers between 0 and 100, as in 12.5, with a comma and a space between two of them.` : undefined;
  const add = async () => {
    await post(`/v1/sweeps/${sweep.id}/ratios`, { ratios });
    close();
    reload();
  };
  return html`<${Card} title="Add a size" class="gap">
    <${Field} id="more-ratios" label="Percentages of layer weights to remove" hint=${hint} error=${fault}>
      <input id="more-ratios" class="inline" autocomplete="off" placeholder="15, 25" value=${text} aria-invalid=${fault ? "true" : undefined} aria-describedby=${describedBy("more-ratios", hint, fault)} onInput=${(/** @type {any} */ e) => setText(e.target.value)} />
    <//>
    <div class="actions"><${Action} kind="main" disabled=${!jobs} work=${add}>${jobs ? `Start ${jobs} ${jobs === 1 ? "job" : "jobs"}: ${ratios.map(percentage).join(", ")}` : "Start jobs"}<//><button type="button" onClick=${close}>Cancel</button></div>
  <//>`;
}
