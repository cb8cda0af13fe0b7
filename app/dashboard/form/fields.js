// @ts-check
/** Form fields in three groups: model, size and runtime, advanced settings. */

import { html } from "../vendor/htm-preact.js";
import { percent, textName } from "../words.js";
import { ALLOCATIONS, RATIOS, TARGETS, allowedTexts, methodOptions } from "./request.js";

/**
 * @typedef {import("./request.js").Form} Form
 * @typedef {{ form: Form, set: (name: string, value: any) => void, offer?: any, uploads?: any[] }} Props
 */

/** @param {any} event */
const typed = (event) => event.target.value;

/** @param {Props} props */
export function Model({ form, set, offer, uploads }) {
  const models = (uploads || []).filter((upload) => upload.kind === "model");
  const choose = (/** @type {string} */ source) => {
    set("source", source);
    set("ref", source === "package" ? offer?.packages[0] || "" : source === "upload" ? models[0]?.id || "" : "");
  };
  const suggestions = form.source === "package" ? offer?.packages : form.source === "hub" ? offer?.hub : null;
  return html`<div class="field">
      <label for="source">Model source</label>
      <select id="source" value=${form.source} onChange=${(/** @type {any} */ e) => choose(typed(e))}>
        <option value="package">Preset</option>
        <option value="hub">Hugging Face Hub</option>
        <option value="upload">Uploaded</option>
        <option value="path">Server path</option>
      </select>
    </div>
    <div class="field">
      <label for="ref">Model</label>
      ${form.source === "upload" ? html`<select id="ref" value=${form.ref} onChange=${(/** @type {any} */ e) => set("ref", typed(e))}>
        ${form.ref && !models.some((upload) => upload.id === form.ref) ? html`<option value=${form.ref}>${form.ref}</option>` : null}
        ${models.map((upload) => html`<option value=${upload.id}>${upload.name || upload.id}</option>`)}
      </select>` : html`<input id="ref" list="suggestions" value=${form.ref} required autocomplete="off" onInput=${(/** @type {any} */ e) => set("ref", typed(e))} />
      <datalist id="suggestions">${(suggestions || []).map((/** @type {string} */ name) => html`<option value=${name} />`)}</datalist>`}
      <p class="hint">${hint(form.source, offer, models)}</p>
    </div>`;
}

/** @param {string} source @param {any} offer @param {any[]} models */
function hint(source, offer, models) {
  if (source === "upload") return html`${models.length ? "" : "No uploads yet. "}<a href="#/uploads">Upload a model</a>`;
  if (!offer) return "";
  if (source === "package") return offer.packages.length ? `Presets: ${offer.packages.join(", ")}.` : "This server has no presets.";
  if (source === "hub") return offer.hub.length ? `Allowed: ${offer.hub.join(", ")}.` : "Hub models are disabled on this server.";
  return offer.roots.length ? `Enter an absolute path under ${offer.roots.join(" or ")}.` : "Server paths are disabled on this server.";
}

const SIZES = [
  ["ratio", "Percentage"],
  ["params", "Parameter count"],
  ["bytes", "File size"],
  ["sweep", "Sweep: try several sizes"],
];

/** @param {Props} props */
export const Size = ({ form, set, offer }) => html`<fieldset>
  <legend>How much to remove</legend>
  ${SIZES.map(([name, label]) => html`<label class="check">
    <input type="radio" name="size" checked=${form.size === name} onChange=${() => set("size", name)} />${label}</label>`)}
  <${Amount} form=${form} set=${set} offer=${offer} />
</fieldset>
<fieldset>
  <legend>Where will you run it?</legend>
  ${TARGETS.map(([name, title, detail]) => html`<label class="check">
    <input type="radio" name="target" checked=${form.target === name} onChange=${() => set("target", name)} /><span><b>${title}</b>${detail ? `: ${detail}` : ""}</span></label>`)}
</fieldset>`;

/** @param {Props} props */
function Amount({ form, set, offer }) {
  if (form.size === "params")
    return html`<label for="params">Parameters of the result, in millions</label>
      <input id="params" type="number" min="0.001" step="any" value=${form.params} onInput=${(/** @type {any} */ e) => set("params", typed(e))} />`;
  if (form.size === "bytes")
    return html`<label for="mebibytes">Weights of the result, in MiB</label>
      <input id="mebibytes" type="number" min="0.001" step="any" value=${form.mebibytes} onInput=${(/** @type {any} */ e) => set("mebibytes", typed(e))} />`;
  if (form.size === "sweep")
    return html`<p class="label" id="ratios">Percentages to remove</p>
      <div class="chips" role="group" aria-labelledby="ratios">${RATIOS.map((ratio) => html`<${Check} list="ratios" value=${ratio} label=${`${Math.round(100 * ratio)} %`} form=${form} set=${set} />`)}</div>
      <p class="label" id="methods">Methods to compare</p>
      <div class="chips" role="group" aria-labelledby="methods">${methodOptions(offer, form).map(([name, title]) => html`<${Check} list="methods" value=${name} label=${title} form=${form} set=${set} />`)}</div>
      <p class="hint">One job for each percentage and method; statistics that do not depend on them are computed once.</p>`;
  return html`<label for="ratio">Remove ${percent(form.ratio, 0)} of layer weights</label>
    <input id="ratio" type="range" min="0.05" max="0.6" step="0.05" value=${form.ratio} onInput=${(/** @type {any} */ e) => set("ratio", Number(typed(e)))} />
    <p class="hint">Small models such as the preset continue text sensibly up to about 10 %. For larger ones 20 to 30 % is usual; above 40 % quality falls steeply.</p>`;
}

/** A checkbox for one value of a list. @param {Props & { list: "texts" | "evaluate" | "exports" | "ratios" | "methods", value: any, label?: string }} props */
function Check({ list, value, label, form, set }) {
  /** @type {any[]} */
  const selected = form[list];
  const toggle = () => {
    const next = selected.includes(value) ? selected.filter((other) => other !== value) : [...selected, value];
    set(list, list === "ratios" ? next.sort((a, b) => a - b) : next);
  };
  return html`<label class="check"><input type="checkbox" checked=${selected.includes(value)} onChange=${toggle} />${label || value}</label>`;
}

/** @param {Props} props */
export function Advanced({ form, set, offer, uploads }) {
  const uploaded = (uploads || []).filter((upload) => upload.kind === "text").map((upload) => [`upload:${upload.id}`, upload.name || upload.id]);
  /** @param {"texts" | "evaluate"} list @param {string[]} included */
  const texts = (list, included) => {
    const available = [...included.map((text) => [text, textName(text)]), ...uploaded];
    const others = form[list].filter((text) => !available.some(([name]) => name === text)).map((text) => [text, textName(text)]);
    return [...available, ...others].map(([value, label]) => html`<${Check} list=${list} value=${value} label=${label} form=${form} set=${set} />`);
  };
  return html`<details>
    <summary>Advanced settings</summary>
    <fieldset><legend>Calibration texts</legend>${texts("texts", allowedTexts(offer))}
      <p class="hint">The model keeps best what it is calibrated on: <a href="#/uploads">upload a text</a> from your domain. The model itself writes generated texts, which takes time.</p>
      <${Whole} name="samples" label="Samples" least=${2} form=${form} set=${set} />
      <${Whole} name="sequence_length" label="Tokens per sample" least=${16} form=${form} set=${set} />
    </fieldset>
    <fieldset><legend>Evaluation</legend>
      <p class="label">Perplexity on</p>${texts("evaluate", ["pydoc", "pycode"])}
      <label class="check"><input type="checkbox" checked=${form.benchmark} onChange=${() => set("benchmark", !form.benchmark)} />Benchmark speed</label>
    </fieldset>
    <fieldset><legend>Additional file formats</legend>
      ${form.target === "research" ? html`<p class="hint">None for this target.</p>` : ["gguf-f16", "gguf-q8_0"].map((format) => html`<${Check} list="exports" value=${format} form=${form} set=${set} />`)}
    </fieldset>
    <${Whole} name="round_to" label="Round dimensions to" least=${1} optional form=${form} set=${set} hint="Multiples of this number. Empty: 8, less for narrow models. 32 or 64 suit GPUs." />
    <${Choice} name="recover" label="Recovery training" options=${[["", "none"], ["distill", "distill from the original"], ["ce", "cross-entropy on text"], ["hidden", "match hidden states"]]} form=${form} set=${set} />
    ${form.size === "sweep" ? null : html`<${Choice} name="method" label="Method" options=${methodOptions(offer, form)} form=${form} set=${set} />`}
    <${Choice} name="allocation" label="Allocation method" options=${ALLOCATIONS.map((name) => [name, name === "auto" ? "method's default" : name])} form=${form} set=${set} />
    <div class="field"><label for="label">Name (optional)</label>
      <input id="label" maxlength="63" value=${form.label} onInput=${(/** @type {any} */ e) => set("label", typed(e))} /></div>
  </details>`;
}

/** @param {Props & { name: "samples" | "sequence_length" | "round_to", label: string, least: number, optional?: boolean, hint?: string }} props */
const Whole = ({ name, label, least, optional, hint, form, set }) => html`<div class="field"><label for=${name}>${label}</label>
  <input id=${name} type="number" min=${least} value=${form[name] ?? ""}
    onInput=${(/** @type {any} */ e) => set(name, optional && !typed(e) ? null : Number(typed(e)))} />
  ${hint ? html`<p class="hint">${hint}</p>` : null}</div>`;

/** @param {Props & { name: "recover" | "method" | "allocation", label: string, options: string[][] }} props */
const Choice = ({ name, label, options, form, set }) => html`<div class="field"><label for=${name}>${label}</label>
  <select id=${name} value=${form[name]} onChange=${(/** @type {any} */ e) => set(name, typed(e))}>
    ${options.map(([value, text]) => html`<option value=${value}>${text}</option>`)}
  </select></div>`;
