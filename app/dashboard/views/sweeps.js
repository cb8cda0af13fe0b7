// @ts-check
/** Sweeps: one model at several sizes, to choose between size and quality. */

import { html, useState } from "../vendor/htm-preact.js";
import { get, post } from "../api.js";
import { Action, csv, save } from "../components/actions.js";
import { Delta, Empty, Fault, Loading, Moment, Note, PageHead, State, Tag } from "../components/basics.js";
import { Table } from "../components/table.js";
import { ago, bytes, change, count, duration, nats, percent, perplexity, share, times } from "../format.js";
import { methodTitle, useLoaded, useOffer, useTitle, useUploadNames } from "../hooks.js";
import { describedModel, domainName, modelName, runsIn, stateName, textName, titleOf } from "../words.js";
import { qualityKind } from "./job/verdict.js";
import { NotFound } from "./missing.js";
import { AddSize } from "./sweep/add-size.js";
import { nextSmaller, pointName, qualityOn, recommended, textsOf } from "./sweep/points.js";
import { TradeOff } from "./sweep/trade-off.js";

/** Name of the dense model. */
const ORIGINAL = "Original";

export function Sweeps() {
  const { data, error } = useLoaded((signal) => get("/v1/sweeps?limit=50", signal), [], 5);
  const uploads = useUploadNames();
  const offer = useOffer();
  return html`<${PageHead} title="Sweeps" about="One model at several sizes, by one or several methods, to choose between size and quality. Statistics that do not depend on the size are computed once.">
      <a class="button main" href="#/new?sweep">New sweep</a>
    <//>
    <${Fault} error=${error} />
    ${!data && !error ? html`<${Loading} what="the sweeps" />` : null}
    ${data && !data.data.length ? html`<${Empty} title="No sweeps yet.">A sweep shows where a model's quality drops. <a href="#/new?sweep">Start one</a>.<//>` : null}
    ${data?.data.length ? html`<div class="card"><${Table} label="Sweeps" columns=${["Name", "State", "Done\u00a0", "Model", "Methods", "Removed", "Created"]}
      rows=${data.data.map((/** @type {any} */ sweep) => [
        html`<a href=${`#/sweeps/${sweep.id}`}><b>${titleOf(sweep, uploads)}</b><span class="hidden"> ${sweep.id}</span></a>`,
        html`<${State} state=${sweep.state} />`,
        percent(sweep.progress.fraction, 0),
        describedModel(sweep.model, uploads),
        sweep.methods.map((/** @type {string} */ name) => methodTitle(offer, name)).join(", "),
        sweep.ratios.map(share).join(", "),
        html`<${Moment} moment=${sweep.created_at} text=${ago(sweep.created_at)} />`,
      ])} /></div>` : null}`;
}

/** @param {{ id: string }} props */
export function Sweep({ id }) {
  const { data, error, reload } = useLoaded((signal) => get(`/v1/sweeps/${id}`, signal), [id], 3);
  const [chosen, setText] = useState(/** @type {string | null} */ (null));
  const [adding, setAdding] = useState(false);
  const uploads = useUploadNames();
  const offer = useOffer();
  useTitle(data ? `${stateName(data.state)} · ${titleOf(data, uploads)}` : "Sweep");
  if (!data && error?.status === 404) return html`<${NotFound} title="There is no such sweep" link="#/sweeps" place="Sweeps">It may have been deleted, or belong to another project.<//>`;
  if (!data) return html`<${PageHead} trail=${[["#/sweeps", "Sweeps"]]} title="Sweep" /><${Fault} error=${error} />${error ? null : html`<${Loading} what="the sweep" />`}`;
  const texts = textsOf(data);
  const text = chosen && texts.includes(chosen) ? chosen : texts[0];
  const best = text ? recommended(data, text) : null;
  return html`<${Head} sweep=${data} best=${best} uploads=${uploads} offer=${offer} reload=${reload} add=${() => setAdding(!adding)} />
    ${adding ? html`<${AddSize} sweep=${data} close=${() => setAdding(false)} reload=${reload} />` : null}
    <${Fault} error=${error} />
    ${best ? html`<${Advice} sweep=${data} best=${best} text=${text} uploads=${uploads} offer=${offer} />` : null}
    ${text ? html`<${TradeOff} sweep=${data} texts=${texts} text=${text} setText=${setText} best=${best} uploads=${uploads} offer=${offer} />` : null}
    <${Sizes} sizes=${data.sizes} />
    <div class="card"><${Results} sweep=${data} texts=${texts} best=${best} uploads=${uploads} offer=${offer} /></div>`;
}

/** @param {{ sweep: any, best: any, uploads: import("../words.js").Names, offer: any, reload: () => void, add: () => void }} props */
function Head({ sweep, best, uploads, offer, reload, add }) {
  const ids = sweep.jobs.map((/** @type {any} */ job) => job.id);
  const cancel = async () => {
    await post(`/v1/sweeps/${sweep.id}/cancel`);
    reload();
  };
  const about = html`${describedModel(sweep.model, uploads)} · ${sweep.jobs.length} ${sweep.jobs.length === 1 ? "job" : "jobs"} · runs in ${runsIn(sweep.compression.target)} · ${percent(sweep.progress.fraction, 0)} done · <${Moment} moment=${sweep.created_at} text=${`Created ${ago(sweep.created_at)}`} /> · <span class="mono">${sweep.id}</span>`;
  return html`<${PageHead} trail=${[["#/sweeps", "Sweeps"]]} title=${html`${titleOf(sweep, uploads)} <${State} state=${sweep.state} />`} about=${about}>
    ${sweep.progress.fraction < 1 ? html`<${Action} kind="danger" confirm="Cancel all jobs of this sweep that have not ended?" work=${cancel}>Cancel all<//>` : null}
    ${ids.length > 1 && ids.length <= 20 ? html`<a class="button" href=${`#/compare?jobs=${ids.join(",")}`}>Compare jobs</a>` : null}
    <button type="button" onClick=${add}>Add a size</button>
    <button type="button" onClick=${() => saveSweep(sweep, uploads)}>Export CSV</button>
    ${best ? html`<a class="button main" href=${`#/jobs/${best.job_id}`}>Use the ${pointName(sweep, best, offer)} result</a>` : null}
  <//>`;
}

/** The recommendation, and what the next step would cost. @param {{ sweep: any, best: any, text: string, uploads: import("../words.js").Names, offer: any }} props */
function Advice({ sweep, best, text, uploads, offer }) {
  const quality = qualityOn(best, text);
  const next = nextSmaller(sweep, best, text);
  const step = next && qualityOn(next, text);
  return html`<div class="gap"><${Note} kind="info" title=${`${pointName(sweep, best, offer)} is the best trade-off.`}>
    Perplexity on ${textName(text, uploads)} is ${perplexity(quality.compressed)} (${change(quality.ratio)}) at ${bytes(best.bytes_after)}.
    ${next ? ` Going on to ${pointName(sweep, next, offer)} saves another ${bytes(best.bytes_after - next.bytes_after)} and changes the perplexity by ${change(step.compressed / quality.compressed)} (${perplexity(quality.compressed)} → ${perplexity(step.compressed)}).` : ""}
  <//></div>`;
}

/** Whether the methods' results are of one size. @param {{ sizes: any[] }} props */
function Sizes({ sizes }) {
  const unequal = sizes.filter((check) => !check.equal).map((check) => percent(check.ratio, 0));
  if (!sizes.length) return null;
  if (!unequal.length) return html`<p class="sub small gap">All methods have equally many parameters at each percentage, within 0.5 %.</p>`;
  return html`<div class="gap"><${Note} kind="warn">At ${unequal.join(", ")} the results differ by more than 0.5 % in parameters: compare them by size, not by percentage.<//></div>`;
}

/** @param {{ sweep: any, texts: string[], best: any, uploads: import("../words.js").Names, offer: any }} props */
function Results({ sweep, texts, best, uploads, offer }) {
  const columns = ["Removed", "Method", "State", "Trade-off", "Parameters\u00a0", "Weights\u00a0", ...texts.map((text) => `Perplexity, ${textName(text, uploads)}\u00a0`),
    "KL, nats/token\u00a0", "Same top token\u00a0", "Generation\u00a0", "Time\u00a0", "Peak memory of the job\u00a0"];
  return html`<${Table} label="Jobs of the sweep" columns=${columns} rows=${[
    ...(sweep.dense ? [["–", ORIGINAL, "", "", count(sweep.dense.params), bytes(sweep.dense.bytes), ...texts.map((text) => perplexity(sweep.dense.quality[text])), "", "", "", "", ""]] : []),
    ...sweep.pareto.map((/** @type {any} */ point) => row(sweep, point, texts, best, offer)),
  ]} />`;
}

/** @param {any} sweep @param {any} point @param {string[]} texts @param {any} best @param {any} offer */
function row(sweep, point, texts, best, offer) {
  const part = point.bytes_after !== null && sweep.dense ? point.bytes_after / sweep.dense.bytes : null;
  const isBest = best !== null && best.job_id === point.job_id;
  return [
    html`<a href=${`#/jobs/${point.job_id}`}><b>${point.ratio === null ? "Open" : share(point.ratio)}</b><span class="hidden"> ${point.job_id}</span></a>`,
    methodTitle(offer, point.method),
    html`<${State} state=${point.state} />`,
    isBest ? html`<${Tag}>Recommended<//>` : point.dominated === null ? "" : point.dominated ? "Beaten on size and quality" : "Best trade-off",
    count(point.params_after),
    part === null ? "–" : html`${bytes(point.bytes_after)} <${Delta} kind=${part < 1 ? "ok" : ""}>${change(part)}<//>`,
    ...texts.map((text) => scored(qualityOn(point, text))),
    nats(point.kl),
    percent(point.top1_agreement),
    times(point.decode_speedup),
    point.seconds === null ? "–" : html`<span class="pair">${duration(point.seconds)}</span>`,
    bytes(point.peak_memory_bytes),
  ];
}

/** @param {any} quality */
const scored = (quality) => (quality ? html`${perplexity(quality.compressed)} <${Delta} kind=${qualityKind(quality.ratio)}>${change(quality.ratio)}<//> ${quality.domain ? html`<span class="hidden">${domainName(quality.domain)}</span>` : null}` : "–");

/** Save the results as CSV, with exact numbers. @param {any} sweep @param {import("../words.js").Names} uploads */
function saveSweep(sweep, uploads) {
  const texts = Object.keys(sweep.dense?.quality || {});
  const columns = ["job", "model", "ratio", "method", "state", "params", "bytes", ...texts.map((text) => `perplexity ${textName(text, uploads)}`), "kl", "top1_agreement", "decode_speedup", "prefill_speedup", "seconds", "peak_memory_bytes", "dominated"];
  const dense = sweep.dense ? [["", modelName(sweep.model, uploads), 0, "original", "", sweep.dense.params, sweep.dense.bytes, ...texts.map((text) => sweep.dense.quality[text])]] : [];
  const rows = sweep.pareto.map((/** @type {any} */ point) => [
    point.job_id, modelName(sweep.model, uploads), point.ratio, point.method, point.state, point.params_after, point.bytes_after,
    ...texts.map((text) => qualityOn(point, text)?.compressed), point.kl, point.top1_agreement, point.decode_speedup, point.prefill_speedup, point.seconds, point.peak_memory_bytes, point.dominated,
  ]);
  save(`${titleOf(sweep, uploads)}.csv`, csv(columns, [...dense, ...rows]), "text/csv");
}
