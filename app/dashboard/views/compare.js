// @ts-check
/** Comparison of jobs, side by side. */

import { html } from "../vendor/htm-preact.js";
import { get } from "../api.js";
import { Fault, State, Table, useLoaded } from "../parts.js";
import { bytes, count, domainName, nats, percent, textName } from "../words.js";

/** @param {{ query: URLSearchParams }} props `jobs`: their ids, separated by commas */
export function Compare({ query }) {
  const jobs = query.get("jobs");
  const { data, error } = useLoaded(
    (signal) => (jobs ? get(`/v1/compare?jobs=${jobs}`, signal) : Promise.resolve(null)), [jobs]);
  if (!jobs) return html`<h1>Compare</h1><p>Select two or more jobs in the <a href="#/jobs">list</a>.</p>`;
  if (!data) return html`<h1>Compare</h1><${Fault} error=${error} />`;
  const texts = [...new Set(data.jobs.flatMap((/** @type {any} */ job) => (job.quality || []).map((/** @type {any} */ score) => score.text)))];
  const each = (/** @type {string} */ name, /** @type {(job: any) => any} */ value) => [name, ...data.jobs.map((/** @type {any} */ job) => value(job) ?? "–")];
  const rows = [
    each("state", (job) => html`<${State} state=${job.state} />`),
    each("parameters", (job) => job.size && count(job.size.params_after)),
    each("weights", (job) => job.size && bytes(job.size.bytes_after)),
    ...texts.flatMap((text) => {
      const measure = (/** @type {string} */ name, /** @type {(score: any) => any} */ value) =>
        each(`${name}, ${textName(text)}`, (job) => {
          const score = job.quality?.find((/** @type {any} */ other) => other.text === text);
          return score && value(score);
        });
      return [
        measure("perplexity ratio", (score) => score.ratio.toFixed(3)),
        measure("KL divergence, nats/token", (score) => nats(score.kl)),
        measure("top-1 agreement", (score) => percent(score.top1_agreement)),
        measure("domain", (score) => domainName(score.domain) || "–"),
      ];
    }),
    each("prompt processing speed-up", (job) => job.speed?.prefill.toFixed(2)),
    each("generation speed-up", (job) => job.speed?.decode.toFixed(2)),
  ];
  const shown = (/** @type {any} */ value) => (value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const settings = data.settings.filter((/** @type {any} */ row) => row.differs).map((/** @type {any} */ row) => [row.name, ...row.values.map(shown)]);
  const columns = ["", ...data.jobs.map((/** @type {any} */ job) => html`<a href=${`#/jobs/${job.id}`}>${job.labels.name ? html`${job.labels.name}<br />` : null}<span class="mono">${job.id}</span></a>`)];
  return html`<h1>Compare</h1>
    <${Plain} label="Results" columns=${columns} rows=${rows} />
    <h2>Settings that differ</h2>
    ${settings.length ? html`<${Plain} label="Settings" columns=${columns} rows=${settings} />` : html`<p class="quiet">None.</p>`}`;
}

/** @param {{ label: string, columns: any[], rows: any[][] }} props */
const Plain = ({ label, columns, rows }) => html`<div class="scroll" tabindex="0" role="region" aria-label=${label}>
  <table>
    <thead><tr>${columns.map((column, at) => (at ? html`<th scope="col">${column}</th>` : html`<td></td>`))}</tr></thead>
    <tbody>${rows.map(([name, ...cells]) => html`<tr><th scope="row">${name}</th>${cells.map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
  </table>
</div>`;
