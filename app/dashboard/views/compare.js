// @ts-check
/** Comparison of jobs, side by side, with differences from a baseline. */

import { html, useState } from "../vendor/htm-preact.js";
import { get } from "../api.js";
import { Delta, Empty, Fault, Loading, PageHead, State } from "../components/basics.js";
import { bytes, change, count, nats, percent, perplexity, share, times } from "../format.js";
import { methodTitle, useLoaded, useOffer, useUploadNames } from "../hooks.js";
import { domainName, settingName, settingValue, textName } from "../words.js";
import { Samples } from "./compare/samples.js";
import { qualityKind } from "./job/verdict.js";

const ORIGINAL = "original";

/** @param {{ query: URLSearchParams }} props `jobs`: their ids, separated by commas */
export function Compare({ query }) {
  const jobs = query.get("jobs");
  const [baseline, setBaseline] = useState(ORIGINAL);
  const [onlyDifferences, setOnlyDifferences] = useState(true);
  const uploads = useUploadNames();
  const offer = useOffer();
  const { data, error } = useLoaded((signal) => (jobs ? get(`/v1/compare?jobs=${jobs}`, signal) : Promise.resolve(null)), [jobs]);
  const trail = [["#/jobs", "Jobs"]];
  if (!jobs) return html`<${PageHead} trail=${trail} title="Compare" /><${Empty} title="Nothing to compare yet.">Select two or more jobs in the <a href="#/jobs">list</a>.<//>`;
  if (!data) return html`<${PageHead} trail=${trail} title="Compare" /><${Fault} error=${error} />${error ? null : html`<${Loading} what="the comparison" />`}`;
  const names = namesOf(data, offer);
  const columns = data.jobs.map((/** @type {any} */ job, /** @type {number} */ at) => html`<a href=${`#/jobs/${job.id}`}>${names[at]}${names[at] === job.id ? null : html`<span class="hidden"> ${job.id}</span>`}</a>`);
  const settings = data.settings
    .filter((/** @type {any} */ row) => row.differs || !onlyDifferences)
    .map((/** @type {any} */ row) => ({ name: settingName(row.name), cells: row.values.map((/** @type {any} */ value) => (row.name.endsWith("method") ? methodTitle(offer, value) : settingValue(row.name, value, uploads))) }));
  return html`<${PageHead} trail=${trail} title=${`Compare ${data.jobs.length} jobs`} about="Differences are from the baseline; a star marks the best value of a row.">
      <label class="check small">Baseline <select class="inline" value=${baseline} onChange=${(/** @type {any} */ e) => setBaseline(e.target.value)}>
        <option value=${ORIGINAL}>Original</option>${data.jobs.map((/** @type {any} */ job, /** @type {number} */ at) => html`<option value=${job.id}>${names[at]}</option>`)}</select></label>
    <//>
    <div class="card gap"><${Columns} label="Results" columns=${columns} rows=${results(data.jobs, baseline, uploads)} /></div>
    <${Samples} jobs=${data.jobs} names=${names} />
    <div class="head"><h2>${onlyDifferences ? "Settings that differ" : "All settings"}</h2>
      <label class="check small"><input type="checkbox" checked=${onlyDifferences} onChange=${() => setOnlyDifferences(!onlyDifferences)} />Only differences</label></div>
    ${settings.length ? html`<div class="card"><${Columns} label="Settings" columns=${columns} rows=${settings} /></div>` : html`<p class="sub">None.</p>`}`;
}

/**
 * Names of the compared jobs; those without one, or of the same, by percentage and method, else by id.
 * @param {any} data @param {any} offer @returns {string[]}
 */
function namesOf(data, offer) {
  const setting = (/** @type {string} */ name) => data.settings.find((/** @type {any} */ row) => row.name === name);
  const [ratios, methods] = [setting("compression.ratio"), setting("compression.method")];
  const given = data.jobs.map((/** @type {any} */ job) => job.labels.name || "");
  const isUnique = (/** @type {string[]} */ names, /** @type {string} */ name) => name !== "" && names.indexOf(name) === names.lastIndexOf(name);
  const described = given.map((/** @type {string} */ name, /** @type {number} */ at) => {
    if (isUnique(given, name)) return name;
    const parts = [ratios?.values[at] ? share(ratios.values[at]) : "", methods?.differs ? methodTitle(offer, methods.values[at]) : ""];
    return [name, ...parts].filter(Boolean).join(" · ");
  });
  return described.map((/** @type {string} */ name, /** @type {number} */ at) => (isUnique(described, name) ? name : data.jobs[at].id));
}

/**
 * A measure of jobs: its value and the original's, how both are shown, and which is better.
 * @typedef {{ name: string, value: (job: any) => number | null | undefined, original?: (job: any) => number | null | undefined,
 *   show: (value: number) => string, lower: boolean, kind: (ratio: number) => "ok" | "warn" | "bad" | "", plain?: boolean }} Measure
 */

/** @param {boolean} lower whether less is better @returns {(ratio: number) => "ok" | "bad" | ""} */
const better = (lower) => (ratio) => (Math.abs(ratio - 1) < 0.005 ? "" : ratio < 1 === lower ? "ok" : "bad");

/** @param {any[]} jobs @param {import("../words.js").Names} uploads @returns {Measure[]} */
function measures(jobs, uploads) {
  const texts = [...new Set(jobs.flatMap((job) => (job.quality || []).map((/** @type {any} */ score) => score.text)))];
  const tasks = [...new Set(jobs.flatMap((job) => (job.tasks || []).map((/** @type {any} */ score) => `${score.task}, ${score.metric}`)))];
  const on = (/** @type {any} */ job, /** @type {string} */ text) => job.quality?.find((/** @type {any} */ score) => score.text === text);
  const task = (/** @type {any} */ job, /** @type {string} */ name) => job.tasks?.find((/** @type {any} */ score) => `${score.task}, ${score.metric}` === name);
  return [
    { name: "Weights", value: (job) => job.size?.bytes_after, original: (job) => job.size?.bytes_before, show: bytes, lower: true, kind: better(true) },
    { name: "Parameters", value: (job) => job.size?.params_after, original: (job) => job.size?.params_before, show: count, lower: true, kind: better(true) },
    ...texts.flatMap((text) => {
      const score = jobs.map((job) => on(job, text)).find(Boolean);
      const name = `${textName(text, uploads)}${domainName(score?.domain) ? `, ${domainName(score.domain)}` : ""}`;
      /** @type {Measure[]} */
      const rows = [
        { name: `Perplexity, ${name}`, value: (job) => on(job, text)?.compressed, original: (job) => on(job, text)?.dense, show: perplexity, lower: true, kind: qualityKind },
        { name: `KL, nats/token, ${name}`, value: (job) => on(job, text)?.kl, show: nats, lower: true, kind: better(true) },
        { name: `Same top token, ${name}`, value: (job) => on(job, text)?.top1_agreement, show: percent, lower: false, kind: better(false) },
      ];
      return rows;
    }),
    ...tasks.map((name) => ({ name, value: (/** @type {any} */ job) => task(job, name)?.compressed, original: (/** @type {any} */ job) => task(job, name)?.dense, show: (/** @type {number} */ value) => value.toFixed(3), lower: false, kind: better(false) })),
    { name: "Generation", value: (job) => job.speed?.decode, show: times, lower: false, kind: better(false), plain: true },
    { name: "Prompt processing", value: (job) => job.speed?.prefill, show: times, lower: false, kind: better(false), plain: true },
  ];
}

/** @param {any[]} jobs @param {string} baseline @param {import("../words.js").Names} uploads */
function results(jobs, baseline, uploads) {
  const reference = jobs.find((job) => job.id === baseline);
  const rows = measures(jobs, uploads).filter((measure) => jobs.some((job) => present(measure.value(job))));
  return [
    { name: "State", cells: jobs.map((job) => html`<${State} state=${job.state} />`) },
    ...rows.map((measure) => ({ name: measure.name, cells: jobs.map((job) => cell(measure, job, jobs, reference)) })),
  ];
}

/** @param {any} value */
const present = (value) => value !== null && value !== undefined;

/** @param {Measure} measure @param {any} job @param {any[]} jobs @param {any} reference the baseline, undefined for each job's original */
function cell(measure, job, jobs, reference) {
  const value = measure.value(job);
  if (!present(value)) return "–";
  const values = jobs.map(measure.value).filter(present).map(Number);
  const best = values.length > 1 && new Set(values).size > 1 && Number(value) === (measure.lower ? Math.min(...values) : Math.max(...values));
  const base = reference ? (reference.id === job.id ? null : measure.value(reference)) : measure.original?.(job);
  const ratio = present(base) && Number(base) ? Number(value) / Number(base) : null;
  return html`${measure.show(Number(value))} ${ratio === null || (measure.plain && !reference) ? null : html`<${Delta} kind=${measure.kind(ratio)}>${change(ratio)}<//>`} ${best ? html`<span role="img" aria-label="best">★</span>` : null}`;
}

/** A column for each job. @param {{ label: string, columns: any[], rows: { name: string, cells: any[] }[] }} props */
const Columns = ({ label, columns, rows }) => html`<div class="scroll" tabindex="0" role="region" aria-label=${label}>
  <table class="compare" role="table" style=${`--jobs: ${columns.length}`}>
    <thead role="rowgroup"><tr role="row"><td role="cell"></td>${columns.map((column) => html`<th role="columnheader" scope="col">${column}</th>`)}</tr></thead>
    <tbody role="rowgroup">${rows.map(({ name, cells }) => html`<tr role="row"><th role="rowheader" scope="row">${name}</th>${cells.map((content) => html`<td role="cell">${content}</td>`)}</tr>`)}</tbody>
  </table>
</div>`;
