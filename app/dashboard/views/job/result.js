// @ts-check
/** Overview of a result: verdict, main figures, details, and how to use it. */

import { html, useState } from "../../vendor/htm-preact.js";
import { Delta, Kpi, Note } from "../../components/basics.js";
import { CodeTabs } from "../../components/code.js";
import { bytes, change, count, percent, perplexity, speed, times } from "../../format.js";
import { domainName, textName } from "../../words.js";
import { Widths } from "./layers.js";
import { Playground } from "./playground.js";
import { Quality, Samples, Speed, Tournament } from "./quality.js";
import { Serving, contextName, servingMemory } from "./serving.js";
import { Checks, Deploy, Provenance } from "./side.js";
import { directoryName, resultSnippets } from "./snippets.js";
import { qualityKind, speedKind, verdict, worstText } from "./verdict.js";

/** @param {{ job: any, report: any, events: any[], artifacts: any, uploads: import("../../words.js").Names, offer: any, reload: () => void }} props */
export function Result({ job, report, events, artifacts, uploads, offer, reload }) {
  const [load, setLoad] = useState({ context: 4096, batch: 1 });
  const evaluation = report?.evaluation || null;
  const files = artifacts.data || artifacts.error;
  const directory = directoryName(job, uploads, artifacts.data?.archive);
  return html`<section aria-label="Result">
      ${report ? html`<${Verdict} job=${job} evaluation=${evaluation} uploads=${uploads} />` : null}
      <${Kpis} job=${job} report=${report} evaluation=${evaluation} uploads=${uploads} load=${load} />
    </section>
    <div class="two">
      <div class="stack">
        ${report?.tournament ? html`<${Tournament} tournament=${report.tournament} offer=${offer} />` : null}
        ${evaluation ? html`<${Quality} evaluation=${evaluation} uploads=${uploads} />
          <${Speed} measured=${evaluation.speed} loads=${evaluation.speed_grid || []} />
          <${Samples} samples=${evaluation.continuations} />` : null}
        <${Playground} job=${job} />
        ${report ? html`<${Serving} report=${report} load=${load} setLoad=${setLoad} />` : null}
        <${Widths} job=${job} events=${events} />
      </div>
      <aside class="stack" aria-label="About this result">
        ${report && files ? html`<${CodeTabs} id="use" title="Use this model" snippets=${resultSnippets(job, report, directory, location.origin)} /><${Deploy} job=${job} name=${directory} />
        <${Checks} report=${report} files=${artifacts.data?.data || null} />` : null}
        <${Provenance} job=${job} report=${report} uploads=${uploads} offer=${offer} reload=${reload} />
      </aside>
    </div>`;
}

/** @param {{ job: any, evaluation: any, uploads: import("../../words.js").Names }} props */
function Verdict({ job, evaluation, uploads }) {
  const { kind, title, text, loses } = verdict(job, evaluation, uploads);
  return html`<div class="gap"><${Note} kind=${kind} title=${title}>${text}${loses ? html` Removing less, more calibration data or recovery training lose less: <a href=${`#/new?like=${job.id}`}>duplicate the job</a>.` : null}<//></div>`;
}

/** @param {{ job: any, report: any, evaluation: any, uploads: import("../../words.js").Names, load: { context: number, batch: number } }} props */
function Kpis({ job, report, evaluation, uploads, load }) {
  const { result } = job;
  const sizes = result.bytes_after / result.bytes_before;
  const memory = report ? servingMemory(report, load.context, load.batch).total : null;
  return html`<div class="kpis gap">
    <${Kpi} name="Size of the weights" value=${bytes(result.bytes_after)} note=${html`was ${bytes(result.bytes_before)} <${Delta} kind=${sizes < 1 ? "ok" : ""}>${change(sizes)}<//><br />${count(result.params_before)} → ${count(result.params_after)} parameters (${percent(1 - result.params_after / result.params_before)} fewer)`} />
    <${QualityKpi} result=${result} evaluation=${evaluation} uploads=${uploads} />
    <${SpeedKpi} result=${result} evaluation=${evaluation} />
    ${memory ? html`<${Kpi} name=${`Memory to serve, ${contextName(load.context)} context`} value=${bytes(memory.after)} note=${html`was ${bytes(memory.before)} <${Delta} kind=${memory.after < memory.before ? "ok" : ""}>${change(memory.after / memory.before)}<//><br />weights and KV cache, batch ${load.batch}`} />` : null}
  </div>`;
}

/** @param {{ result: any, evaluation: any, uploads: import("../../words.js").Names }} props */
function QualityKpi({ result, evaluation, uploads }) {
  const worst = worstText(evaluation);
  const [before, after] = worst ? [worst.dense, worst.compressed] : [result.perplexity_before, result.perplexity_after];
  if (before === null || before === undefined) return html`<${Kpi} name="Perplexity" value="–" note="not measured" />`;
  const name = worst ? `Perplexity, worst ${worst.domain === "out" ? "unseen text" : "text"} (${textName(worst.text, uploads)})` : "Perplexity";
  const agreement = worst?.top1_agreement ?? result.top1_agreement;
  return html`<${Kpi} name=${name} value=${perplexity(after)} note=${html`was ${perplexity(before)} <${Delta} kind=${qualityKind(after / before)}>${change(after / before)}<//><br />${agreement === null || agreement === undefined ? domainName(worst?.domain) : `${percent(agreement)} of the top tokens are the same`}`} />`;
}

/** @param {{ result: any, evaluation: any }} props */
function SpeedKpi({ result, evaluation }) {
  const decode = evaluation?.speed?.whole.decode;
  if (!decode && !result.speedup) return html`<${Kpi} name="Generation" value="–" note="not measured" />`;
  if (!decode) return html`<${Kpi} name="Generation" value=${times(result.speedup.decode)} note=${`prompt processing ${times(result.speedup.prefill)}`} />`;
  const kind = speedKind(decode);
  return html`<${Kpi} name=${`Generation, batch ${evaluation.speed.batch_size}`} value=${speed(decode.compressed)} note=${html`was ${speed(decode.dense)} <${Delta} kind=${kind}>${kind ? times(decode.ratio) : "no clear difference"}<//><br />prompt processing ${times(evaluation.speed.whole.prefill.ratio)}`} />`;
}
