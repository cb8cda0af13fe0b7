// @ts-check
/** Sweeps: one model at several ratios, with a chart of size and quality. */

import { html } from "../vendor/htm-preact.js";
import { get, post } from "../api.js";
import { Chart } from "../charts.js";
import { Action, Fault, State, Table, useLoaded } from "../parts.js";
import { ago, bytes, count, domainName, duration, modelName, nats, percent, titleOf } from "../words.js";

/** Name of the dense model. */
const ORIGINAL = "Original";

export function Sweeps() {
  const { data, error } = useLoaded((signal) => get("/v1/sweeps?limit=50", signal), [], 5);
  return html`<h1>Sweeps</h1>
    <p class="quiet">One model at several ratios, by one or several methods, to choose between size and quality. Statistics that do not depend on the ratio are computed once.</p>
    <div class="actions"><a class="button main" href="#/new?sweep">New sweep</a></div>
    <${Fault} error=${error} />
    ${data ? html`<${Table} label="Sweeps" empty="No sweeps yet." columns=${["sweep", "state", "done", "model", "methods", "ratios", "created"]}
      rows=${data.data.map((/** @type {any} */ sweep) => [
        html`<a class="mono" href=${`#/sweeps/${sweep.id}`}>${sweep.id}</a>`,
        html`<${State} state=${sweep.state} />`,
        percent(sweep.progress.fraction),
        modelName(sweep),
        sweep.methods.join(", "),
        sweep.ratios.join(", "),
        ago(sweep.created_at),
      ])} />` : null}`;
}

/** @param {{ id: string }} props */
export function Sweep({ id }) {
  const { data, error, reload } = useLoaded((signal) => get(`/v1/sweeps/${id}`, signal), [id], 3);
  if (!data) return html`<${Fault} error=${error} /><p class="quiet">Loading …</p>`;
  const points = data.pareto.filter((/** @type {any} */ point) => point.perplexity !== null);
  points.sort((/** @type {any} */ a, /** @type {any} */ b) => a.bytes_after - b.bytes_after);
  const open = (/** @type {number} */ at) => (location.hash = `#/jobs/${points[at].job_id}`);
  const texts = Object.keys(data.dense?.quality || {});
  const pick = (/** @type {boolean} */ dominated) =>
    points.map((/** @type {any} */ point) => (Boolean(point.dominated) === dominated ? point.perplexity : null));
  return html`<h1>${titleOf(data)} <${State} state=${data.state} /></h1>
    <p class="quiet">${modelName(data)} · ${percent(data.progress.fraction, 0)} done · <span class="mono">${data.id}</span></p>
    <div class="actions">
      ${data.jobs.length > 1 ? html`<a class="button" href=${`#/compare?jobs=${data.jobs.map((/** @type {any} */ job) => job.id).join(",")}`}>Compare jobs</a>` : null}
      ${data.progress.fraction < 1 ? html`<${Action} work=${async () => { await post(`/v1/sweeps/${id}/cancel`); reload(); }}>Cancel all<//>` : null}
    </div>
    ${points.length > 1 && data.methods.length === 1 ? html`<${Chart} title="Size and quality" dots=${true} choose=${open}
      note="Perplexity by MiB of weights; lower and further left is better. Click a point to open its job."
      x="MiB of weights" y="perplexity" names=${["Best trade-off", "Beaten on size and quality"]}
      columns=${[points.map((/** @type {any} */ point) => point.bytes_after / 2 ** 20), pick(false), pick(true)]}
      head=${["weights", "perplexity"]} rows=${points.map((/** @type {any} */ point) => [bytes(point.bytes_after), point.perplexity.toFixed(3)])} />` : null}
    ${points.length && data.methods.length > 1 ? texts.map((text) => html`<${Curves} key=${text} data=${data} text=${text} />`) : null}
    <${Sizes} sizes=${data.sizes} />
    <${Table} label="Jobs of the sweep" columns=${["ratio\u00a0", "method", "state", "parameters\u00a0", ...(texts.length ? texts : [null]).map(perplexityOn), "KL, nats/token\u00a0", "top-1 agreement\u00a0", "domain", "generation speed-up\u00a0", "time\u00a0", "memory\u00a0", "job", ""]}
      rows=${[...originalRow(data, texts), ...data.pareto.map((/** @type {any} */ point) => [
        point.ratio,
        point.method,
        html`<${State} state=${point.state} />`,
        count(point.params_after),
        ...(texts.length ? texts.map((text) => qualityOn(point, text)?.compressed.toFixed(3) ?? "–") : ["–"]),
        nats(point.kl),
        percent(point.top1_agreement),
        domainName(point.domain) || "–",
        point.decode_speedup?.toFixed(2) ?? "–",
        point.seconds === null ? "–" : duration(point.seconds),
        bytes(point.peak_memory_bytes),
        html`<a class="mono" href=${`#/jobs/${point.job_id}`}>${point.job_id}</a>`,
        point.dominated ? "Beaten on size and quality" : "",
      ])]} />`;
}

/** Quality of a job on a text. @param {any} point @param {string} text */
const qualityOn = (point, text) => point.quality.find((/** @type {any} */ score) => score.text === text);

/** Heading of a column of perplexities. @param {string | null} text */
const perplexityOn = (text) => `perplexity${text ? `, ${text}` : ""}\u00a0`;

/** Row of the dense model, once a job has measured it. @param {any} data @param {string[]} texts */
const originalRow = ({ dense }, texts) =>
  dense ? [[0, ORIGINAL, "", count(dense.params), ...(texts.length ? texts.map((text) => dense.quality[text].toFixed(3)) : ["–"]), "–", "–", "–", "–", "–", "–", "", ""]] : [];

/** Whether the methods' results are of one size. @param {{ sizes: any[] }} props */
function Sizes({ sizes }) {
  const unequal = sizes.filter((check) => !check.equal).map((check) => percent(check.ratio, 0));
  if (!sizes.length) return null;
  if (!unequal.length) return html`<p class="quiet">All methods have equally many parameters at each ratio, within 0.5 %.</p>`;
  return html`<div class="banner"><p>At ${unequal.join(", ")} the results differ by more than 0.5 % in parameters: compare them by size, not by ratio.</p></div>`;
}

/** Perplexity on one text by size, with a curve for each method and the dense model as a point. @param {{ data: any, text: string }} props */
function Curves({ data, text }) {
  const scored = data.pareto.flatMap((/** @type {any} */ point) => {
    const quality = qualityOn(point, text);
    return quality ? [{ name: point.method, size: point.bytes_after, perplexity: quality.compressed, job: point.job_id }] : [];
  });
  const dots = [...scored, { name: ORIGINAL, size: data.dense.bytes, perplexity: data.dense.quality[text], job: null }].sort((a, b) => a.size - b.size);
  const names = [ORIGINAL, ...data.methods];
  const open = (/** @type {number} */ at) => {
    if (dots[at].job) location.hash = `#/jobs/${dots[at].job}`;
  };
  return html`<${Chart} title=${`Perplexity on ${text}`} curves=${true} choose=${open}
    note="Perplexity by MiB of weights; lower and further left is better. Click a point to open its job."
    x="MiB of weights" y="perplexity" names=${names}
    columns=${[dots.map((dot) => dot.size / 2 ** 20), ...names.map((name) => dots.map((dot) => (dot.name === name ? dot.perplexity : null)))]}
    head=${["method", "weights", "perplexity"]} rows=${dots.map((dot) => [dot.name, bytes(dot.size), dot.perplexity.toFixed(3)])} />`;
}
