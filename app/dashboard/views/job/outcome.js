// @ts-check
/** What came of a job: size, quality and speed against the dense model, and what both write. */

import { html } from "../../vendor/htm-preact.js";
import { get } from "../../api.js";
import { Table, useLoaded } from "../../parts.js";
import { bytes, count, percent } from "../../words.js";

/** @param {{ job: any }} props */
export function Outcome({ job }) {
  const { result } = job;
  const report = useLoaded((signal) => get(`/v1/jobs/${job.id}/report`, signal), [job.id]).data;
  const lost = result.perplexity_before ? result.perplexity_after / result.perplexity_before : null;
  return html`<section aria-label="Outcome">
    <div class="tiles">
      <${Bar} name="Parameters" value=${count(result.params_after)} part=${result.params_after / result.params_before}
        note=${`of ${count(result.params_before)}: ${percent(1 - result.params_after / result.params_before)} fewer`} />
      <${Bar} name="Weights" value=${bytes(result.bytes_after)} part=${result.bytes_after / result.bytes_before} note=${`of ${bytes(result.bytes_before)}`} />
      ${lost ? html`<${Bar} name="Perplexity" value=${`× ${lost.toFixed(2)}`} part=${1 / lost} note=${`${result.perplexity_before.toFixed(1)} → ${result.perplexity_after.toFixed(1)}; 1 is unharmed`} />` : null}
      ${result.speedup ? html`<${Bar} name="Speed, writing" value=${`${result.speedup.decode.toFixed(2)} ×`} part=${1 / result.speedup.decode} note=${`reading a prompt ${result.speedup.prefill.toFixed(2)} ×; more is faster`} />` : null}
    </div>
    ${report?.evaluation ? html`<${Quality} evaluation=${report.evaluation} />` : null}
  </section>`;
}

/** The dense model is the whole bar. @param {{ name: string, value: any, part: number, note: string }} props */
const Bar = ({ name, value, part, note }) => html`<div class="tile">
  ${name}<b>${value}</b>
  <div class="bar" aria-hidden="true"><div style=${`width: ${Math.round(100 * Math.min(part, 1))}%`}></div></div>
  <span class="quiet small">${note}</span>
</div>`;

/** @param {{ evaluation: any }} props */
function Quality({ evaluation }) {
  const number = (/** @type {number} */ value) => value.toPrecision(4);
  const texts = (evaluation.perplexity || []).map((/** @type {any} */ one) => [
    `perplexity, ${one.text}`, number(one.dense), number(one.compressed), `× ${(one.compressed / one.dense).toFixed(2)}`]);
  const tasks = (evaluation.tasks || []).map((/** @type {any} */ one) => [
    `${one.task}, ${one.metric}`, number(one.dense), number(one.compressed), `× ${(one.compressed / one.dense).toFixed(2)}`]);
  const rows = [...texts, ...tasks];
  return html`${rows.length ? html`<h2>Quality</h2>
      <${Table} label="Quality" columns=${["", "dense\u00a0", "compressed\u00a0", "compressed / dense\u00a0"]} rows=${rows} />` : null}
    ${evaluation.continuations?.length ? html`<details><summary>What both write</summary>
      <${Table} label="What both write" columns=${["begun with", "dense", "compressed"]} rows=${evaluation.continuations.map((/** @type {any} */ one) => [one.prompt, one.dense, one.compressed])} />
    </details>` : null}`;
}
