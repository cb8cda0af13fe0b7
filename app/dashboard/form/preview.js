// @ts-check
/** What the service says would come of a form, before anything is queued. */

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { post } from "../api.js";
import { Facts, Fault, Table, tellShell } from "../parts.js";
import { bytes, count, duration, percent } from "../words.js";
import { jobBody } from "./request.js";

const PAUSE_MS = 350;

/**
 * Asked a moment after the form was changed; of a sweep, for each of its jobs.
 * @param {import("./request.js").Form} form
 * @returns {{ answers: { ratio: number, data: any }[], error: any, waiting: boolean }}
 */
export function useChecked(form) {
  const [found, setFound] = useState({ answers: /** @type {any[]} */ ([]), error: /** @type {any} */ (null), waiting: true });
  useEffect(() => {
    const stop = new AbortController();
    setFound((old) => ({ ...old, waiting: true }));
    const timer = setTimeout(async () => {
      if (!form.ref) return setFound({ answers: [], error: null, waiting: false });
      try {
        setFound({ answers: await asked(form, stop.signal), error: null, waiting: false });
      } catch (error) {
        if (stop.signal.aborted) return;
        tellShell(error);
        setFound({ answers: [], error, waiting: false });
      }
    }, PAUSE_MS);
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [JSON.stringify(form)]);
  return found;
}

/** @param {import("./request.js").Form} form @param {AbortSignal} signal */
function asked(form, signal) {
  const ratios = form.size === "sweep" ? form.ratios : [form.ratio];
  if (!ratios.length) throw new Error("Choose at least one part to remove.");
  return Promise.all(ratios.map(async (ratio) => {
    return { ratio, data: await post("/v1/jobs:validate", jobBody(form, ratio), {}, signal) };
  }));
}

/** @param {{ checked: ReturnType<typeof useChecked>, form: import("./request.js").Form }} props */
export function Preview({ checked, form }) {
  const { answers, error, waiting } = checked;
  const last = answers[answers.length - 1]?.data;
  return html`<section aria-label="What would come of it" aria-busy=${waiting}>
    <h2>What would come of it</h2>
    <${Fault} error=${error} />
    ${!last && !error ? html`<p class="quiet">${form.ref ? "Asking the service …" : "Choose a model first."}</p>` : null}
    ${answers.length > 1 ? html`<${Several} answers=${answers} />` : null}
    ${answers.length === 1 ? html`<${One} data=${last} />` : null}
    ${last ? html`<${Runs} targets=${last.targets} target=${form.target} />` : null}
    ${last?.warnings.length ? html`<div class="banner"><ul>${last.warnings.map((/** @type {any} */ one) => html`<li>${one.message}</li>`)}</ul></div>` : null}
  </section>`;
}

/** @param {any} data */
const time = (data) => (data.seconds ? `about ${duration(data.seconds)} on ${data.durations[0].device}` : "known once a first job is done");

/** @param {{ data: any }} props */
function One({ data }) {
  const found = data.estimate;
  if (!found) return html`<p class="quiet">The model's size is known once a worker has opened it.</p>`;
  return html`<${Facts} pairs=${[
    ["parameters", `${count(found.params_before)} → ${count(found.params_after)}`],
    ["weights", `${bytes(found.bytes_before)} → ${bytes(found.bytes_after)}`],
    ["removed", percent(1 - found.params_after / found.params_before)],
    ["memory", bytes(found.peak_memory_bytes)],
    ["time", time(data)],
  ]} />`;
}

/** @param {{ answers: { ratio: number, data: any }[] }} props */
function Several({ answers }) {
  const seconds = answers.map(({ data }) => data.seconds);
  const sum = seconds.every(Boolean) ? duration(seconds.reduce((a, b) => a + b, 0)) : null;
  return html`<${Table} label="Jobs of the sweep" columns=${["part\u00a0", "parameters\u00a0", "weights\u00a0", "memory\u00a0"]}
      rows=${answers.map(({ ratio, data }) => [percent(ratio, 0), count(data.estimate?.params_after), bytes(data.estimate?.bytes_after), bytes(data.estimate?.peak_memory_bytes)])} />
    <p class="quiet">${sum ? `At most about ${sum} together, one after another.` : "The time is known once a first job is done."}</p>`;
}

/** @param {{ targets: any[], target: string }} props */
const Runs = ({ targets, target }) => html`<p class="label">Runs in</p>
  <${Facts} pairs=${targets.map((one) => [
    one.target,
    html`<span class=${one.target === target ? "chosen" : "quiet"}>${one.available ? one.runtimes.join(", ") || "possible" : one.detail}</span>`,
  ])} />`;
