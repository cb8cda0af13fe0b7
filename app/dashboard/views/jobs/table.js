// @ts-check
/** Table of jobs; on narrow screens each job is a block of a few lines. */

import { html } from "../../vendor/htm-preact.js";
import { Bar, Delta, Moment, State, Tag } from "../../components/basics.js";
import { ago, bytes, change, duration, percent, perplexity, roughly, times } from "../../format.js";
import { failureText } from "../../problems.js";
import { modelName, requestedAmount, runsIn, titleOf } from "../../words.js";
import { useSteadyEta } from "../job/progress.js";
import { qualityKind } from "../job/verdict.js";
import { ordinal } from "./line.js";
import { elapsed, labelsOf, resultRatio } from "./listing.js";
import { RowMenu } from "./row-menu.js";

/** Columns: how they are sorted, their name, whether they hold numbers. @type {[string, string, boolean][]} */
const COLUMNS = [
  ["name", "Name", false], ["status", "Status", false], ["runtime", "Runs in", false], ["size", "Size", true], ["perplexity", "Perplexity", true],
  ["speed", "Generation", true], ["duration", "Duration", true], ["created", "Created", false],
];

/** Change of speed that is none, where the spread of the measurement is not known: the list has no reports. */
const NOISE = 0.03;

/**
 * @param {{ jobs: any[], selected: string[], toggle: (id: string) => void, sort: { by: string, down: boolean },
 *   setSort: (sort: { by: string, down: boolean }) => void, uploads: import("../../words.js").Names, reload: () => void }} props
 */
export const JobsTable = ({ jobs, selected, toggle, sort, setSort, uploads, reload }) => html`<div class="card scroll" tabindex="0" role="region" aria-label="Jobs">
  <table class="jobs" role="table">
    <thead role="rowgroup"><tr role="row">
      <th role="columnheader" scope="col"><span class="hidden">Select</span></th>
      ${COLUMNS.map(([by, name, isNumber]) => html`<th role="columnheader" scope="col" class=${isNumber ? "number" : ""} aria-sort=${sort.by === by ? (sort.down ? "descending" : "ascending") : undefined}>
        <button type="button" onClick=${() => setSort({ by, down: sort.by === by ? !sort.down : by === "created" })}>${name}${sort.by === by ? (sort.down ? " ↓" : " ↑") : ""}</button></th>`)}
      <th role="columnheader" scope="col"><span class="hidden">Actions</span></th>
    </tr></thead>
    <tbody role="rowgroup">${jobs.map((job) => html`<${Row} key=${job.id} job=${job} selected=${selected.includes(job.id)} toggle=${toggle} uploads=${uploads} reload=${reload} />`)}</tbody>
  </table>
</div>`;

/** @param {{ job: any, selected: boolean, toggle: (id: string) => void, uploads: import("../../words.js").Names, reload: () => void }} props */
function Row({ job, selected, toggle, uploads, reload }) {
  const cells = [
    ["", html`<a href=${`#/jobs/${job.id}`}><b>${titleOf(job, uploads)}</b><span class="hidden"> ${job.id}</span></a><div class="dim tiny">${modelName(job.model, uploads)} · ${requestedAmount(job.compression)}${labelsOf(job).map((label) => ` · ${label.join("=")}`)}</div>`],
    ["", html`<${Status} job=${job} />`],
    ["wide", html`<${Tag}>${runsIn(job.compression.target)}<//>`],
    ["number", sizes(job)],
    ["number", quality(job)],
    ["number", generation(job)],
    ["number wide", elapsed(job) === null ? "" : html`<span title="While a worker ran it, without queue and pauses">${duration(elapsed(job))}</span>`],
    ["", html`<span class="dim"><${Moment} moment=${job.created_at} text=${ago(job.created_at)} /></span>`],
    ["wide", html`<${RowMenu} job=${job} title=${titleOf(job, uploads)} reload=${reload} />`],
  ];
  return html`<tr role="row">
    <td role="cell" class="select"><input type="checkbox" aria-label=${`Select ${titleOf(job, uploads)} ${job.id}`} checked=${selected} onChange=${() => toggle(job.id)} /></td>
    ${cells.map(([kind, cell]) => html`<td role="cell" class=${`${kind} ${cell === "" ? "void" : ""}`}>${cell === "" ? "–" : cell}</td>`)}
  </tr>`;
}

/** @param {{ job: any }} props */
function Status({ job }) {
  const left = useSteadyEta(job);
  if (job.state === "queued") return html`<${State} state="queued" more=${job.queue_position ? ` · ${ordinal(job.queue_position)} in line` : ""} />`;
  if (job.state === "running") {
    const fraction = job.progress?.fraction ?? 0;
    return html`<${State} state="running" /><div class="actions dim tiny"><${Bar} part=${fraction} />${percent(fraction, 0)} · ${job.progress ? (left === null ? "estimating…" : `${roughly(left)} left`) : "Starting…"}</div>`;
  }
  return html`<${State} state=${job.state} />${job.error ? html`<div class="fault tiny">${failureText(job.error.code)}</div>` : null}`;
}

/** @param {any} job */
function sizes(job) {
  const ratio = resultRatio(job, "bytes");
  if (ratio === null) return "";
  return html`<span class="pair">${bytes(job.result.bytes_before)} → ${bytes(job.result.bytes_after)}</span> <${Delta} kind=${ratio < 1 ? "ok" : ""}>${change(ratio)}<//>`;
}

/** @param {any} job */
function quality(job) {
  const ratio = resultRatio(job, "perplexity");
  if (ratio === null) return "";
  return html`<span class="pair">${perplexity(job.result.perplexity_before)} → ${perplexity(job.result.perplexity_after)}</span> <${Delta} kind=${qualityKind(ratio)}>${change(ratio)}<//>`;
}

/** @param {any} job */
function generation(job) {
  const decode = job.result?.speedup?.decode;
  return decode === undefined || decode === null ? "" : html`<${Delta} kind=${Math.abs(decode - 1) < NOISE ? "" : decode > 1 ? "ok" : "bad"}>${times(decode)}<//>`;
}
