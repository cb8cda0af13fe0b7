// @ts-check
/** What the compared models write from the same prompt, side by side. */

import { html, useState } from "../../vendor/htm-preact.js";
import { get } from "../../api.js";
import { Card } from "../../components/basics.js";
import { useLoaded } from "../../hooks.js";

/** @param {{ jobs: any[], names: string[] }} props `names`: of the jobs, in their order */
export function Samples({ jobs, names }) {
  const [chosen, setChosen] = useState("");
  const ids = jobs.filter((job) => job.size).map((job) => job.id);
  const reports = useLoaded((signal) => Promise.all(ids.map((id) => get(`/v1/jobs/${id}/report`, signal))), [ids.join()]).data;
  if (!reports) return null;
  const outputs = reports.flatMap((/** @type {any} */ report, /** @type {number} */ at) =>
    (report.evaluation?.continuations || []).map((/** @type {any} */ sample) => ({ ...sample, name: names[jobs.findIndex((job) => job.id === ids[at])] })));
  const prompts = [...new Set(outputs.map((/** @type {any} */ sample) => sample.prompt))];
  if (!prompts.length) return null;
  const prompt = prompts.includes(chosen) ? chosen : prompts[0];
  const shown = outputs.filter((/** @type {any} */ sample) => sample.prompt === prompt);
  const originals = [...new Set(shown.map((/** @type {any} */ sample) => sample.dense))];
  const aside = html`<select class="inline" aria-label="Prompt" value=${prompt} onChange=${(/** @type {any} */ e) => setChosen(e.target.value)}>
    ${prompts.map((text) => html`<option value=${text}>${String(text).slice(0, 60)}</option>`)}
  </select>`;
  return html`<${Card} title="Sample outputs" aside=${aside} class="gap">
    <p class="small gap"><b>Prompt:</b> ${prompt}</p>
    <div class="sample">
      ${originals.map((text) => html`<div><p class="tiny dim">Original</p>${text}</div>`)}
      ${shown.map((/** @type {any} */ sample) => html`<div><p class="tiny dim">${sample.name}</p>${sample.compressed}</div>`)}
    </div>
  <//>`;
}
