// @ts-check
/** Quality, speed and sample outputs of a result, compared with the original. */

import { html, useState } from "../../vendor/htm-preact.js";
import { Card, Delta, Tag } from "../../components/basics.js";
import { Table } from "../../components/table.js";
import { change, duration, nats, number, percent, perplexity, speed, times } from "../../format.js";
import { methodTitle } from "../../hooks.js";
import { domainName, textName } from "../../words.js";
import { qualityKind, speedKind } from "./verdict.js";

/** @param {{ evaluation: any, uploads: import("../../words.js").Names }} props */
export function Quality({ evaluation, uploads }) {
  const texts = evaluation.perplexity || [];
  const tasks = evaluation.tasks || [];
  if (!texts.length && !tasks.length) return null;
  return html`<${Card} title="Quality" aside=${html`<span class="dim small">perplexity: lower is better</span>`}>
    <div class="stack">
      ${texts.length ? html`<${Table} label="Quality" columns=${["Text", "Original\u00a0", "Compressed\u00a0", "Change\u00a0", "KL, nats/token\u00a0", "Same top token\u00a0"]}
        rows=${texts.map((/** @type {any} */ score) => textRow(score, uploads))} />` : null}
      ${texts.some((/** @type {any} */ score) => score.kl !== null && score.kl !== undefined) ? html`<p class="hint">KL: mean divergence of the predictions from the original's. Same top token: how often both models' most likely token is equal.</p>` : null}
      ${tasks.length ? html`<${Table} label="Tasks" columns=${["Task", "Examples\u00a0", "Original\u00a0", "Compressed\u00a0", "Change\u00a0"]} rows=${tasks.map(taskRow)} />` : null}
    </div>
  <//>`;
}

/** @param {any} score @param {import("../../words.js").Names} uploads */
function textRow(score, uploads) {
  const domain = domainName(score.domain);
  const ratio = score.compressed / score.dense;
  const error = score.kl_stderr === null || score.kl_stderr === undefined ? "" : ` ± ${nats(score.kl_stderr)}`;
  return [
    html`${textName(score.text, uploads)} ${domain ? html`<${Tag}>${domain}<//>` : null}`,
    perplexity(score.dense),
    html`<b>${perplexity(score.compressed)}</b>`,
    html`<${Delta} kind=${qualityKind(ratio)}>${change(ratio)}<//>`,
    score.kl === null || score.kl === undefined ? "–" : `${nats(score.kl)}${error}`,
    percent(score.top1_agreement),
  ];
}

/** @param {any} score */
function taskRow(score) {
  const ratio = score.dense ? score.compressed / score.dense : null;
  const error = (/** @type {number | null} */ value) => (value === null || value === undefined ? "" : ` ± ${number(value, 2)}`);
  const better = score.higher_is_better ? score.compressed >= score.dense : score.compressed <= score.dense;
  return [
    `${score.task}, ${score.metric}`, score.examples,
    `${number(score.dense, 3)}${error(score.dense_stderr)}`, html`<b>${number(score.compressed, 3)}${error(score.compressed_stderr)}</b>`,
    html`<${Delta} kind=${better ? "ok" : "warn"}>${change(ratio)}<//>`,
  ];
}

/** @param {{ measured: any, loads: any[] }} props */
export function Speed({ measured, loads }) {
  if (!measured && !loads.length) return null;
  /** @param {string} name @param {any} phase */
  const row = (name, phase) => [name, speed(phase.dense, phase.dense_spread), html`<b>${speed(phase.compressed, phase.compressed_spread)}</b>`, html`<${Delta} kind=${speedKind(phase)}>${speedKind(phase) ? times(phase.ratio) : "no clear difference"}<//>`];
  const about = measured ? `batch ${measured.batch_size} · ${measured.prompt_tokens}-token prompt · median of ${measured.repeats}, ± half the interquartile range` : "";
  return html`<${Card} title="Speed" aside=${html`<span class="dim small">${about}</span>`}>
    <${Table} label="Speed" columns=${["Phase", "Original\u00a0", "Compressed\u00a0", "Speed-up\u00a0"]} rows=${[
      ...(measured ? [row("Prompt processing", measured.whole.prefill), row("Generation", measured.whole.decode)] : []),
      ...loads.flatMap((load) => [row(`Prompt processing, ${load.batch_size} × ${load.context_length} tokens`, load.prefill), row(`Generation, ${load.batch_size} × ${load.context_length} tokens`, load.decode)]),
    ]} />
  <//>`;
}

/** Outputs of both models side by side. @param {{ samples: any[] }} props */
export function Samples({ samples }) {
  const [at, setAt] = useState(0);
  if (!samples?.length) return null;
  const sample = samples[Math.min(at, samples.length - 1)];
  const aside = html`<select class="inline" aria-label="Prompt" value=${at} onChange=${(/** @type {any} */ e) => setAt(Number(e.target.value))}>
    ${samples.map(({ prompt }, index) => html`<option value=${index}>${shortened(prompt)}</option>`)}
  </select>`;
  return html`<${Card} title="Sample outputs" label="Sample outputs" aside=${aside}>
    <p class="small gap"><b>Prompt:</b> ${sample.prompt}</p>
    <div class="sample">
      <div><p class="tiny dim">Original</p>${sample.dense}</div>
      <div><p class="tiny dim">Compressed</p>${sample.compressed}</div>
    </div>
    <p class="hint">The most likely tokens of each model (greedy), from the same prompt.</p>
  <//>`;
}

/** @param {string} prompt */
const shortened = (prompt) => (prompt.length > 48 ? `${prompt.slice(0, 47)}…` : prompt);

/** The methods that auto tried. @param {{ tournament: any, offer: any }} props */
export const Tournament = ({ tournament, offer }) => html`<${Card} title="Choice of the method">
  <p class="small">${tournament.reason}.</p>
  <${Table} label="Choice of the method" columns=${["Method", "KL divergence of the trial, nats/token\u00a0", "Time\u00a0", "Not tried because"]}
    rows=${tournament.candidates.map((/** @type {any} */ candidate) => [
      methodTitle(offer, candidate.method),
      candidate.kl === null ? "–" : `${nats(candidate.kl)}${candidate.standard_error === null ? "" : ` ± ${nats(candidate.standard_error)}`}`,
      duration(candidate.seconds),
      candidate.reason || "",
    ])} />
<//>`;
