// @ts-check
/** A form for a job: what would come of it is shown before the button is pressed. */

import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { get, post } from "../api.js";
import { Facts, Fault, tellShell, useLoaded } from "../parts.js";
import { bytes, count, duration, percent } from "../words.js";

const TARGETS = [
  ["research", "shapes of each layer's own: the best quality; brings its code"],
  ["adaptive", "DeciLM: runs in vLLM, and llama.cpp by GGUF"],
  ["stock", "the model's own class: runs wherever it runs"],
];
const TEXTS = ["pydoc", "pycode", "chat", "self"];
const START = {
  source: "package", ref: "", revision: "", size: "ratio", ratio: 0.3, params: "", target: "research",
  texts: TEXTS, samples: 64, sequence_length: 256, round_to: 8, exports: /** @type {string[]} */ ([]),
  evaluate: /** @type {string[]} */ (["pydoc"]), benchmark: true, recover: "", label: "",
};

export function Submit() {
  const [form, setForm] = useState(START);
  const [key] = useState(() => `dashboard-${crypto.randomUUID?.() || Math.random()}`);
  const [error, setError] = useState(/** @type {any} */ (null));
  const [busy, setBusy] = useState(false);
  const offer = useLoaded((signal) => get("/v1/models", signal), []);
  const set = (/** @type {string} */ name, /** @type {any} */ value) => setForm((old) => ({ ...old, [name]: value }));
  useEffect(() => {
    const [first] = offer.data?.offer.packages || [];
    // The answer may come when the form is being filled in: what is there stays.
    if (first) setForm((old) => (old.source === "package" && !old.ref ? { ...old, ref: first } : old));
  }, [offer.data]);
  const checked = useChecked(form);
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const job = await post("/v1/jobs", body(form), { "Idempotency-Key": key });
      location.hash = `#/jobs/${job.id}`;
    } catch (found) {
      setError(found);
      tellShell(found);
    }
    setBusy(false);
  };
  return html`<h1>New job</h1>
    <form class="big" onSubmit=${submit}>
      <div>
        <${Model} form=${form} set=${set} offer=${offer.data?.offer} />
        <${Size} form=${form} set=${set} />
        <${More} form=${form} set=${set} />
        <button class="main" disabled=${busy || !form.ref || Boolean(checked.error)}>Compress</button>
        <${Fault} error=${error} />
      </div>
      <${Preview} checked=${checked} target=${form.target} />
    </form>`;
}

/** @param {any} form */
function body(form) {
  const source = form.texts.map((/** @type {string} */ one) => ({ source: one }));
  const perplexity = form.evaluate;
  return {
    model: { source: form.source, ref: form.ref.trim(), ...(form.revision ? { revision: form.revision } : {}) },
    compression: {
      ...(form.size === "ratio" ? { ratio: form.ratio } : { target_params: Math.round(Number(form.params) * 1e6) || 1 }),
      target: form.target,
      round_to: form.round_to,
      exports: ["safetensors", ...(form.target === "research" ? [] : form.exports)],
      calibration: {
        source: source.length === 1 ? source[0].source : source,
        samples: form.samples,
        sequence_length: form.sequence_length,
      },
      ...(form.recover ? { recover: { loss: form.recover } } : {}),
    },
    evaluation: perplexity.length || form.benchmark ? { perplexity, benchmark: form.benchmark, max_tokens: 4096 } : null,
    labels: form.label ? { name: form.label } : {},
  };
}

/** What the service says of the form, a moment after it was changed. @param {any} form */
function useChecked(form) {
  const [found, setFound] = useState(/** @type {any} */ ({ data: null, error: null, waiting: true }));
  useEffect(() => {
    const stop = new AbortController();
    setFound((/** @type {any} */ old) => ({ ...old, waiting: true }));
    const timer = setTimeout(async () => {
      if (!form.ref) return;
      try {
        setFound({ data: await post("/v1/jobs:validate", body(form), {}, stop.signal), error: null, waiting: false });
      } catch (error) {
        if (!stop.signal.aborted) setFound({ data: null, error, waiting: false });
      }
    }, 350);
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [JSON.stringify(form)]);
  return found;
}

/** @param {{ form: any, set: any, offer: any }} props */
function Model({ form, set, offer }) {
  const known = form.source === "package" ? offer?.packages : form.source === "hub" ? offer?.hub : null;
  return html`<div class="field">
      <label for="source">Where the model is</label>
      <select id="source" value=${form.source} onChange=${(/** @type {any} */ e) => { set("source", e.target.value); set("ref", e.target.value === "package" ? offer?.packages[0] || "" : ""); }}>
        <option value="package">a Python package of the workers</option>
        <option value="hub">a hub</option>
        <option value="upload">an upload</option>
        <option value="path">a directory of the workers</option>
      </select>
    </div>
    <div class="field">
      <label for="ref">Model</label>
      <input id="ref" list="known" value=${form.ref} required autocomplete="off" onInput=${(/** @type {any} */ e) => set("ref", e.target.value)} />
      <datalist id="known">${(known || []).map((/** @type {string} */ one) => html`<option value=${one} />`)}</datalist>
      <p class="hint">${hint(form.source, offer)}</p>
    </div>`;
}

/** @param {string} source @param {any} offer */
function hint(source, offer) {
  if (!offer) return "";
  if (source === "package") return `Allowed here: ${offer.packages.join(", ") || "none"}.`;
  if (source === "hub") return `Allowed here: ${offer.hub.join(", ") || "none"}.`;
  if (source === "upload") return "Its id; intraslice submit ./directory uploads one.";
  return `Below: ${offer.roots.join(", ") || "nothing is allowed"}.`;
}

/** @param {{ form: any, set: any }} props */
const Size = ({ form, set }) => html`<fieldset>
  <legend>How small</legend>
  <label class="check"><input type="radio" name="size" checked=${form.size === "ratio"} onChange=${() => set("size", "ratio")} />remove a part</label>
  <label class="check"><input type="radio" name="size" checked=${form.size === "params"} onChange=${() => set("size", "params")} />reach a size</label>
  ${form.size === "ratio" ? html`
    <label for="ratio">${Math.round(100 * form.ratio)} % of the layers' parameters</label>
    <input id="ratio" type="range" min="0.05" max="0.6" step="0.05" value=${form.ratio} onInput=${(/** @type {any} */ e) => set("ratio", Number(e.target.value))} />
    <p class="hint">20 to 30 % is usual; above 40 % quality falls steeply.</p>` : html`
    <label for="params">Parameters of the result, in millions</label>
    <input id="params" type="number" min="1" step="any" value=${form.params} onInput=${(/** @type {any} */ e) => set("params", e.target.value)} />`}
</fieldset>
<fieldset>
  <legend>Where it is to run</legend>
  ${TARGETS.map(([name, what]) => html`<label class="check">
    <input type="radio" name="target" checked=${form.target === name} onChange=${() => set("target", name)} /><b>${name}</b>: ${what}</label>`)}
</fieldset>`;

/** @param {{ form: any, set: any }} props */
function More({ form, set }) {
  const toggle = (/** @type {string} */ list, /** @type {string} */ one) =>
    set(list, form[list].includes(one) ? form[list].filter((/** @type {string} */ x) => x !== one) : [...form[list], one]);
  const checks = (/** @type {string} */ list, /** @type {string[]} */ names) => names.map((one) => html`<label class="check">
    <input type="checkbox" checked=${form[list].includes(one)} onChange=${() => toggle(list, one)} />${one}</label>`);
  return html`<details>
    <summary>More: calibration, evaluation, files, recovery</summary>
    <fieldset><legend>Calibrate on</legend>${checks("texts", TEXTS)}
      <p class="hint">A model keeps best what it was calibrated on. chat and self are written by the model, which takes time.</p>
      <label for="samples">Sequences</label>
      <input id="samples" type="number" min="2" value=${form.samples} onInput=${(/** @type {any} */ e) => set("samples", Number(e.target.value))} />
      <label for="length">Tokens in each</label>
      <input id="length" type="number" min="16" value=${form.sequence_length} onInput=${(/** @type {any} */ e) => set("sequence_length", Number(e.target.value))} />
    </fieldset>
    <fieldset><legend>Measure</legend>
      <p class="label">Perplexity on</p>${checks("evaluate", ["pydoc", "pycode"])}
      <label class="check"><input type="checkbox" checked=${form.benchmark} onChange=${() => set("benchmark", !form.benchmark)} />speed, dense and compressed in turns</label>
    </fieldset>
    <fieldset><legend>Files beside safetensors</legend>
      ${form.target === "research" ? html`<p class="hint">None for this target.</p>` : checks("exports", ["gguf-f16", "gguf-q8_0"])}
    </fieldset>
    <div class="field"><label for="round">Sizes in multiples of</label>
      <input id="round" type="number" min="1" value=${form.round_to} onInput=${(/** @type {any} */ e) => set("round_to", Number(e.target.value))} />
      <p class="hint">Small models need small steps; 32 or 64 suit fast matrix units.</p></div>
    <div class="field"><label for="recover">Train afterwards</label>
      <select id="recover" value=${form.recover} onChange=${(/** @type {any} */ e) => set("recover", e.target.value)}>
        <option value="">no</option><option value="distill">to be as the dense model</option><option value="ce">on the text</option>
      </select>
    </div>
    <div class="field"><label for="label">Name, to find it by</label>
      <input id="label" maxlength="63" value=${form.label} onInput=${(/** @type {any} */ e) => set("label", e.target.value)} /></div>
  </details>`;
}

/** @param {{ checked: any, target: string }} props */
function Preview({ checked, target }) {
  const { data, error, waiting } = checked;
  const estimate = data?.estimate;
  return html`<section aria-label="What would come of it" aria-busy=${waiting}>
    <h2 style="margin-top: 0">What would come of it</h2>
    <${Fault} error=${error} />
    ${!data && !error ? html`<p class="quiet">Asking the service …</p>` : null}
    ${estimate ? html`<${Facts} pairs=${[
      ["parameters", `${count(estimate.params_before)} → ${count(estimate.params_after)}`],
      ["weights", `${bytes(estimate.bytes_before)} → ${bytes(estimate.bytes_after)}`],
      ["removed", percent(1 - estimate.params_after / estimate.params_before)],
      ["memory", bytes(estimate.peak_memory_bytes)],
      ["time", data.seconds ? `about ${duration(data.seconds)} on ${data.durations[0].device}` : "not known before a first job"],
    ]} />` : null}
    ${data ? html`<p class="label">Targets</p>
      <ul>${data.targets.map((/** @type {any} */ one) => html`<li>${one.target === target ? html`<b>${one.target}</b>` : one.target}: ${one.available ? one.runtimes.join(", ") || "possible" : one.detail}</li>`)}</ul>` : null}
    ${data?.warnings.length ? html`<div class="banner"><ul>${data.warnings.map((/** @type {any} */ one) => html`<li>${one.message}</li>`)}</ul></div>` : null}
  </section>`;
}
