// @ts-check
/** Playground: a prompt to the original and the compressed model, on a worker that has no job. */

import { html, useEffect, useState } from "../../vendor/htm-preact.js";
import { get, post, remove } from "../../api.js";
import { Action } from "../../components/actions.js";
import { Card, Fault, Note } from "../../components/basics.js";
import { Field, describedBy } from "../../components/controls.js";
import { duration, speed } from "../../format.js";
import { reportToShell, useLoaded } from "../../hooks.js";
import { errorBeside, failureText } from "../../problems.js";

const POLL_SECONDS = 1;
const LIVE = ["queued", "running"];
/** @type {Record<string, string>} */
const MODEL_NAMES = { dense: "Original", compressed: "Compressed" };
/** @type {[string, string, string[]][]} */
const CHOICES = [["both", "Both models", ["dense", "compressed"]], ["compressed", "Compressed model", ["compressed"]], ["dense", "Original model", ["dense"]]];
/** @type {[string, string][]} temperatures of sampling; empty for none */
const SELECTIONS = [["", "Most likely tokens"], ["0.7", "Sampled, temperature 0.7"], ["1", "Sampled, temperature 1"]];

/** The panel, where the service has a playground and the files are still there. @param {{ job: any }} props */
export function Playground({ job }) {
  const service = useLoaded((signal) => get("/v1/service", signal), []).data;
  if (!service?.playground || job.expired_at) return null;
  return html`<${TryIt} job=${job} limits=${service.playground} allowed=${service.scopes.includes("write")} />`;
}

/** The generation, read again until it has ended. @param {string} jobId */
function useGeneration(jobId) {
  const [generation, setGeneration] = useState(/** @type {any} */ (null));
  const live = LIVE.includes(generation?.state);
  useEffect(() => {
    if (!live) return undefined;
    const stop = new AbortController();
    let timer = 0;
    const step = async () => {
      try {
        const next = await get(`/v1/jobs/${jobId}/generations/${generation.id}`, stop.signal);
        reportToShell(null);
        setGeneration(next);
      } catch (error) {
        if (stop.signal.aborted) return;
        reportToShell(error);
        // Deleted elsewhere, for instance with the job's files.
        if (/** @type {any} */ (error).status === 404) setGeneration(null);
      }
      if (!stop.signal.aborted) timer = setTimeout(step, POLL_SECONDS * 1000);
    };
    timer = setTimeout(step, POLL_SECONDS * 1000);
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [jobId, generation?.id, live]);
  return { generation, setGeneration, live };
}

/** @param {{ job: any, limits: any, allowed: boolean }} props */
function TryIt({ job, limits, allowed }) {
  const [form, setForm] = useState({ prompt: "", tokens: String(Math.min(64, limits.max_new_tokens)), temperature: "", models: "both" });
  const [error, setError] = useState(/** @type {any} */ (null));
  const { generation, setGeneration, live } = useGeneration(job.id);
  const set = (/** @type {string} */ name) => (/** @type {any} */ event) => setForm({ ...form, [name]: event.target.value });
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setError(null);
    try {
      setGeneration(await post(`/v1/jobs/${job.id}/generate`, requestOf(form)));
    } catch (failure) {
      setError(failure);
      reportToShell(failure);
    }
  };
  const cancel = async () => setGeneration(await post(`/v1/jobs/${job.id}/generations/${generation.id}/cancel`));
  const forget = async () => {
    await remove(`/v1/jobs/${job.id}/generations/${generation.id}`);
    setGeneration(null);
  };
  const hint = `At most ${limits.max_prompt_bytes.toLocaleString("en")} bytes. Prompt and answers are stored with the job until they are deleted; everybody with a key of this project can read them.`;
  const [promptError, tokensError] = [errorBeside(error, ["/prompt"]), errorBeside(error, ["/max_new_tokens"])];
  const isElsewhere = error && !promptError && !tokensError;
  return html`<${Card} title="Try it" label="Try it"><div class="stack">
    <form onSubmit=${send}>
      <${Field} id="try-prompt" label="Prompt" hint=${hint} error=${promptError}>
        <textarea id="try-prompt" rows="3" required value=${form.prompt} aria-describedby=${describedBy("try-prompt", hint, promptError)} onInput=${set("prompt")}></textarea>
      <//>
      <div class="columns">
        <${Field} id="try-models" label="Ask">
          <select id="try-models" value=${form.models} onChange=${set("models")}>${CHOICES.map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select>
        <//>
        <${Field} id="try-tokens" label=${`Longest answer, up to ${limits.max_new_tokens} tokens`} error=${tokensError}>
          <input id="try-tokens" type="number" min="1" max=${limits.max_new_tokens} required value=${form.tokens} aria-describedby=${describedBy("try-tokens", null, tokensError)} onInput=${set("tokens")} />
        <//>
        <${Field} id="try-temperature" label="Selection of tokens">
          <select id="try-temperature" value=${form.temperature} onChange=${set("temperature")}>${SELECTIONS.map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select>
        <//>
      </div>
      <div class="actions">
        <button class="main" disabled=${live || !allowed || !form.prompt}>Send prompt</button>
        ${live ? html`<${Action} kind="danger" work=${cancel}>Cancel<//>` : null}
        ${generation && !live ? html`<${Action} work=${forget}>Delete prompt and answers<//>` : null}
        ${allowed ? null : html`<span class="sub small">Your API key may read only: sending a prompt needs the scope write.</span>`}
      </div>
      ${isElsewhere ? html`<${Fault} error=${error} />` : null}
    </form>
    ${generation ? html`<${Answers} generation=${generation} />` : null}
  </div><//>`;
}

/** Body of the request. @param {{ prompt: string, tokens: string, temperature: string, models: string }} form */
export const requestOf = (form) => ({
  prompt: form.prompt,
  max_new_tokens: Number(form.tokens),
  temperature: form.temperature ? Number(form.temperature) : null,
  // Sampling is to give another answer each time; the request of a greedy answer has no seed.
  ...(form.temperature ? { seed: Math.floor(Math.random() * 2 ** 32) } : {}),
  models: CHOICES.find(([value]) => value === form.models)?.[2],
});

/** Answers side by side, and what happens where there is none yet. @param {{ generation: any }} props */
function Answers({ generation }) {
  const { state, error } = generation;
  const answers = new Map(generation.answers.map((/** @type {any} */ answer) => [answer.model, answer]));
  return html`<div class="stack">
    <p class="small" role="status">${progressText(generation)}</p>
    ${state === "failed" ? html`<${Note} kind="bad" role="alert" title=${`${failureText(error.code)}.`}>${sentence(error.message)} ${error.hint ? sentence(error.hint) : ""}<//>` : null}
    <div class="sample">
      ${generation.models.map((/** @type {string} */ model) => html`<div><p class="tiny dim">${MODEL_NAMES[model]}${answers.has(model) ? ` · ${measured(answers.get(model))}` : ""}</p>${answers.get(model)?.text ?? "…"}</div>`)}
    </div>
  </div>`;
}

/** @param {any} generation */
function progressText({ state, models, answers, prompt }) {
  if (state === "queued") return "Waiting for a free worker: jobs come first.";
  if (state === "running") return `The ${MODEL_NAMES[models[answers.length] || models[0]].toLowerCase()} model is loaded and answers …`;
  if (state === "cancelled") return "Cancelled.";
  return state === "succeeded" ? `Continuations of “${prompt.length > 48 ? `${prompt.slice(0, 47)}…` : prompt}”:` : "";
}

/** @param {any} answer */
const measured = (answer) => `${answer.new_tokens} ${answer.new_tokens === 1 ? "token" : "tokens"}${answer.finish_reason === "length" ? ", cut off" : ""} · ${speed(answer.tokens_per_second)} · loaded in ${duration(answer.load_seconds)}`;

/** @param {string} text */
const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
