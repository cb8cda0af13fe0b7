// @ts-check
/** Form that adds ratios to a sweep. */

import { html, useState } from "../../vendor/htm-preact.js";
import { post } from "../../api.js";
import { Action } from "../../components/actions.js";
import { Card } from "../../components/basics.js";
import { Field, describedBy } from "../../components/controls.js";

const NUMBER = /^(\d+\.?\d*|\.\d+)$/;

/** A ratio as a percentage with all of its digits. @param {number} ratio */
const percentage = (ratio) => `${Number((100 * ratio).toFixed(4))} %`;

/** The ratio of a percentage, rounded to six digits; null if it is none strictly between 0 and 100. @param {string} part */
function ratioOf(part) {
  const ratio = NUMBER.test(part) ? Number((Number(part) / 100).toFixed(6)) : 0;
  return ratio > 0 && ratio < 1 ? ratio : null;
}

/**
 * Ratios of a text, each once, and the parts that are no percentages. A comma before a digit does not separate: 12,5 may be meant as 12.5.
 * @param {string} text
 */
function read(text) {
  const parts = text.split(/(?:\s|;|%|,(?!\d))+/).filter(Boolean);
  const wrong = parts.filter((part) => ratioOf(part) === null);
  return { ratios: [...new Set(parts.map(ratioOf))].filter((ratio) => ratio !== null), wrong };
}

/** @param {{ sweep: any, close: () => void, reload: () => void }} props */
export function AddSize({ sweep, close, reload }) {
  const [text, setText] = useState("");
  /** @type {number[]} */
  const present = [...new Set(sweep.jobs.map((/** @type {any} */ job) => job.compression.ratio))];
  const { ratios: entered, wrong } = read(text);
  const ratios = entered.filter((ratio) => !present.includes(ratio));
  const jobs = wrong.length ? 0 : ratios.length * sweep.methods.length;
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
