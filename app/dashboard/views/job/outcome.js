// @ts-check
/** Result of a job: size, quality, speed and sample outputs, compared with the dense model. */

import { html } from "../../vendor/htm-preact.js";
import { get } from "../../api.js";
import { Table, useLoaded } from "../../parts.js";
import { bytes, count, domainName, duration, nats, percent, textName } from "../../words.js";

/** @param {{ job: any }} props */
export function Outcome({ job }) {
  const { result } = job;
  const report = useLoaded((signal) => get(`/v1/jobs/${job.id}/report`, signal), [job.id]).data;
  const ratio = result.perplexity_before ? result.perplexity_after / result.perplexity_before : null;
  return html`<section aria-label="Result">
    <div class="tiles">
      <${Bar} name="Parameters" value=${count(result.params_after)} part=${result.params_after / result.params_before}
        note=${`of ${count(result.params_before)}: ${percent(1 - result.params_after / result.params_before)} fewer`} />
      <${Bar} name="Weights" value=${bytes(result.bytes_after)} part=${result.bytes_after / result.bytes_before} note=${`of ${bytes(result.bytes_before)}`} />
      ${ratio ? html`<${Bar} name="Perplexity" value=${`× ${ratio.toFixed(2)}`} part=${1 / ratio} note=${`${result.perplexity_before.toFixed(1)} → ${result.perplexity_after.toFixed(1)}; lower is better`} />` : null}
      ${result.top1_agreement != null ? html`<${Bar} name="Top-1 agreement" value=${percent(result.top1_agreement)} part=${result.top1_agreement} note=${`same most likely token as the dense model; KL divergence ${nats(result.kl)} nats/token`} />` : null}
      ${result.speedup ? html`<${Bar} name="Generation" value=${`${result.speedup.decode.toFixed(2)} ×`} part=${1 / result.speedup.decode} note=${`prompt processing ${result.speedup.prefill.toFixed(2)} ×; higher is faster`} />` : null}
    </div>
    ${report?.tournament ? html`<${Tournament} tournament=${report.tournament} />` : null}
    ${report?.evaluation ? html`<${Quality} evaluation=${report.evaluation} />` : null}
  </section>`;
}

/** A value and a bar; the full bar is the dense model. @param {{ name: string, value: any, part: number, note: string }} props */
const Bar = ({ name, value, part, note }) => html`<div class="tile">
  ${name}<b>${value}</b>
  <div class="bar" aria-hidden="true"><div style=${`width: ${Math.round(100 * Math.min(part, 1))}%`}></div></div>
  <span class="quiet small">${note}</span>
</div>`;

/** The methods that auto tried. @param {{ tournament: any }} props */
const Tournament = ({ tournament }) => html`<h2>Choice of the method</h2>
  <p>${tournament.reason}.</p>
  <${Table} label="Choice of the method" columns=${["method", "KL divergence of the trial, nats/token\u00a0", "time\u00a0", "not tried because"]}
    rows=${tournament.candidates.map((/** @type {any} */ candidate) => [
      candidate.method,
      candidate.kl === null ? "–" : `${nats(candidate.kl)}${candidate.standard_error === null ? "" : ` ± ${nats(candidate.standard_error)}`}`,
      duration(candidate.seconds),
      candidate.reason || "",
    ])} />`;

/** @param {{ evaluation: any }} props */
function Quality({ evaluation }) {
  const number = (/** @type {number} */ value) => value.toPrecision(4);
  const texts = (evaluation.perplexity || []).flatMap((/** @type {any} */ score) => {
    const [name, domain] = [textName(score.text), domainName(score.domain)];
    const error = score.kl_stderr == null ? "" : ` ± ${nats(score.kl_stderr)}`;
    return [
      [`perplexity, ${name}${domain && ` (${domain})`}`, number(score.dense), number(score.compressed), `× ${(score.compressed / score.dense).toFixed(2)}`],
      ...(score.kl == null ? [] : [
        [`KL divergence, nats/token, ${name}`, "", `${nats(score.kl)}${error}`, ""],
        [`top-1 agreement, ${name}`, "", percent(score.top1_agreement), ""]]),
    ];
  });
  const tasks = (evaluation.tasks || []).map((/** @type {any} */ score) => [
    `${score.task}, ${score.metric}`, number(score.dense), number(score.compressed), `× ${(score.compressed / score.dense).toFixed(2)}`]);
  const rows = [...texts, ...tasks];
  return html`${rows.length ? html`<h2>Quality</h2>
      <${Table} label="Quality" columns=${["", "dense\u00a0", "compressed\u00a0", "compressed / dense\u00a0"]} rows=${rows} />` : null}
    ${evaluation.continuations?.length ? html`<details><summary>Sample outputs</summary>
      <${Table} label="Sample outputs" columns=${["prompt", "dense", "compressed"]} rows=${evaluation.continuations.map((/** @type {any} */ sample) => [sample.prompt, sample.dense, sample.compressed])} />
    </details>` : null}`;
}
