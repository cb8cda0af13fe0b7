// @ts-check
/** More percentages for a sweep. */

import { html, useState } from "../../vendor/htm-preact.js";
import { post } from "../../api.js";
import { Action } from "../../components/actions.js";
import { Card } from "../../components/basics.js";
import { Field } from "../../components/controls.js";
import { share } from "../../format.js";

/** Percentages of a text, as ratios; those that are none are left out. @param {string} text */
const ratiosOf = (text) => text.split(/[\s,;%]+/).filter(Boolean).map((part) => Number(part) / 100).filter((ratio) => ratio > 0 && ratio < 1);

/** @param {{ sweep: any, close: () => void, reload: () => void }} props */
export function AddSize({ sweep, close, reload }) {
  const [text, setText] = useState("");
  const ratios = ratiosOf(text).filter((ratio) => !sweep.ratios.includes(ratio));
  const jobs = ratios.length * sweep.methods.length;
  const add = async () => {
    await post(`/v1/sweeps/${sweep.id}/ratios`, { ratios });
    close();
    reload();
  };
  return html`<${Card} title="Add a size" class="gap">
    <${Field} id="more-ratios" label="Percentages of layer weights to remove" hint=${`With all other settings of the sweep. It has ${sweep.ratios.map(share).join(", ")}.`}>
      <input id="more-ratios" class="inline" autocomplete="off" placeholder="15, 25" value=${text} aria-describedby="more-ratios-hint" onInput=${(/** @type {any} */ e) => setText(e.target.value)} />
    <//>
    <div class="actions"><${Action} kind="main" disabled=${!jobs} work=${add}>${`Start ${jobs || ""} ${jobs === 1 ? "job" : "jobs"}`}<//><button type="button" onClick=${close}>Cancel</button></div>
  <//>`;
}
