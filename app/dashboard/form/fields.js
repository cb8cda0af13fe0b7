// @ts-check
/** The fields of the form, in three groups: which model, how small, and everything else. */

import { html } from "../vendor/htm-preact.js";
import { percent } from "../words.js";
import { ALLOCATIONS, METHODS, RATIOS, TARGETS, TEXTS } from "./request.js";

/**
 * @typedef {import("./request.js").Form} Form
 * @typedef {{ form: Form, set: (name: string, value: any) => void, offer?: any, uploads?: any[] }} Props
 */

/** @param {any} event */
const typed = (event) => event.target.value;

/** @param {Props} props */
export function Model({ form, set, offer, uploads }) {
  const models = (uploads || []).filter((one) => one.kind === "model");
  const choose = (/** @type {string} */ source) => {
    set("source", source);
    set("ref", source === "package" ? offer?.packages[0] || "" : source === "upload" ? models[0]?.id || "" : "");
  };
  const known = form.source === "package" ? offer?.packages : form.source === "hub" ? offer?.hub : null;
  return html`<div class="field">
      <label for="source">Where the model is</label>
      <select id="source" value=${form.source} onChange=${(/** @type {any} */ e) => choose(typed(e))}>
        <option value="package">a Python package of the workers</option>
        <option value="hub">a hub</option>
        <option value="upload">sent from this computer</option>
        <option value="path">a directory of the workers</option>
      </select>
    </div>
    <div class="field">
      <label for="ref">Model</label>
      ${form.source === "upload" ? html`<select id="ref" value=${form.ref} onChange=${(/** @type {any} */ e) => set("ref", typed(e))}>
        ${form.ref && !models.some((one) => one.id === form.ref) ? html`<option value=${form.ref}>${form.ref}</option>` : null}
        ${models.map((one) => html`<option value=${one.id}>${one.name || one.id}</option>`)}
      </select>` : html`<input id="ref" list="known" value=${form.ref} required autocomplete="off" onInput=${(/** @type {any} */ e) => set("ref", typed(e))} />
      <datalist id="known">${(known || []).map((/** @type {string} */ one) => html`<option value=${one} />`)}</datalist>`}
      <p class="hint">${hint(form.source, offer, models)}</p>
    </div>`;
}

/** @param {string} source @param {any} offer @param {any[]} models */
function hint(source, offer, models) {
  if (source === "upload") return html`${models.length ? "" : "None is here yet. "}<a href="#/uploads">Send one</a>`;
  if (!offer) return "";
  if (source === "package") return `Allowed here: ${offer.packages.join(", ") || "none"}.`;
  if (source === "hub") return `Allowed here: ${offer.hub.join(", ") || "none"}.`;
  return `Below: ${offer.roots.join(", ") || "nothing is allowed"}.`;
}

const SIZES = [
  ["ratio", "remove a part"],
  ["params", "reach a number of parameters"],
  ["bytes", "reach a size of the files"],
  ["sweep", "try several, and compare (a sweep)"],
];

/** @param {Props} props */
export const Size = ({ form, set }) => html`<fieldset>
  <legend>How small</legend>
  ${SIZES.map(([name, what]) => html`<label class="check">
    <input type="radio" name="size" checked=${form.size === name} onChange=${() => set("size", name)} />${what}</label>`)}
  <${Amount} form=${form} set=${set} />
</fieldset>
<fieldset>
  <legend>Where it is to run</legend>
  ${TARGETS.map(([name, what]) => html`<label class="check">
    <input type="radio" name="target" checked=${form.target === name} onChange=${() => set("target", name)} /><span><b>${name}</b>: ${what}</span></label>`)}
</fieldset>`;

/** @param {Props} props */
function Amount({ form, set }) {
  if (form.size === "params")
    return html`<label for="params">Parameters of the result, in millions</label>
      <input id="params" type="number" min="0.001" step="any" value=${form.params} onInput=${(/** @type {any} */ e) => set("params", typed(e))} />`;
  if (form.size === "bytes")
    return html`<label for="mebibytes">Weights of the result, in MiB</label>
      <input id="mebibytes" type="number" min="0.001" step="any" value=${form.mebibytes} onInput=${(/** @type {any} */ e) => set("mebibytes", typed(e))} />`;
  if (form.size === "sweep")
    return html`<p class="label" id="ratios">Parts to remove</p>
      <div class="chips" role="group" aria-labelledby="ratios">${RATIOS.map((one) => html`<${Check} list="ratios" one=${one} text=${`${Math.round(100 * one)} %`} form=${form} set=${set} />`)}</div>
      <p class="hint">One job each; what does not depend on the part is learnt once.</p>`;
  return html`<label for="ratio">${percent(form.ratio, 0)} of the layers' parameters</label>
    <input id="ratio" type="range" min="0.05" max="0.6" step="0.05" value=${form.ratio} onInput=${(/** @type {any} */ e) => set("ratio", Number(typed(e)))} />
    <p class="hint">20 to 30 % is usual; above 40 % quality falls steeply.</p>`;
}

/** One of a list, in or out. @param {Props & { list: "texts" | "evaluate" | "exports" | "ratios", one: any, text?: string }} props */
function Check({ list, one, text, form, set }) {
  /** @type {any[]} */
  const chosen = form[list];
  const toggle = () => {
    const next = chosen.includes(one) ? chosen.filter((x) => x !== one) : [...chosen, one];
    set(list, list === "ratios" ? next.sort((a, b) => a - b) : next);
  };
  return html`<label class="check"><input type="checkbox" checked=${chosen.includes(one)} onChange=${toggle} />${text || one}</label>`;
}

/** @param {Props} props */
export function More({ form, set, uploads }) {
  const sent = (uploads || []).filter((one) => one.kind === "text").map((one) => [`upload:${one.id}`, one.name || one.id]);
  /** @param {"texts" | "evaluate"} list @param {string[]} own */
  const texts = (list, own) => {
    const offered = [...own.map((one) => [one, one]), ...sent];
    const others = form[list].filter((one) => !offered.some(([name]) => name === one)).map((one) => [one, one]);
    return [...offered, ...others].map(([one, text]) => html`<${Check} list=${list} one=${one} text=${text} form=${form} set=${set} />`);
  };
  return html`<details>
    <summary>More: calibration, evaluation, files, recovery</summary>
    <fieldset><legend>Calibrate on</legend>${texts("texts", TEXTS)}
      <p class="hint">A model keeps best what it was calibrated on: <a href="#/uploads">send a text</a> of the kind it is for. chat and self are written by the model, which takes time.</p>
      <${Whole} name="samples" label="Sequences" least=${2} form=${form} set=${set} />
      <${Whole} name="sequence_length" label="Tokens in each" least=${16} form=${form} set=${set} />
    </fieldset>
    <fieldset><legend>Measure</legend>
      <p class="label">Perplexity on</p>${texts("evaluate", ["pydoc", "pycode"])}
      <label class="check"><input type="checkbox" checked=${form.benchmark} onChange=${() => set("benchmark", !form.benchmark)} />speed, dense and compressed in turns</label>
    </fieldset>
    <fieldset><legend>Files beside safetensors</legend>
      ${form.target === "research" ? html`<p class="hint">None for this target.</p>` : ["gguf-f16", "gguf-q8_0"].map((one) => html`<${Check} list="exports" one=${one} form=${form} set=${set} />`)}
    </fieldset>
    <${Whole} name="round_to" label="Sizes in multiples of" least=${1} form=${form} set=${set} hint="Small models need small steps; 32 or 64 suit fast matrix units." />
    <${Choice} name="recover" label="Train afterwards" options=${[["", "no"], ["distill", "to be as the dense model"], ["ce", "on the text"]]} form=${form} set=${set} />
    <${Choice} name="method" label="Method" options=${METHODS.map((one) => [one, one])} form=${form} set=${set} />
    <${Choice} name="allocation" label="Who decides what is removed where" options=${ALLOCATIONS.map((one) => [one, one === "auto" ? "the method" : one])} form=${form} set=${set} />
    <div class="field"><label for="label">Name, to find it by</label>
      <input id="label" maxlength="63" value=${form.label} onInput=${(/** @type {any} */ e) => set("label", typed(e))} /></div>
  </details>`;
}

/** @param {Props & { name: "samples" | "sequence_length" | "round_to", label: string, least: number, hint?: string }} props */
const Whole = ({ name, label, least, hint, form, set }) => html`<div class="field"><label for=${name}>${label}</label>
  <input id=${name} type="number" min=${least} value=${form[name]} onInput=${(/** @type {any} */ e) => set(name, Number(typed(e)))} />
  ${hint ? html`<p class="hint">${hint}</p>` : null}</div>`;

/** @param {Props & { name: "recover" | "method" | "allocation", label: string, options: string[][] }} props */
const Choice = ({ name, label, options, form, set }) => html`<div class="field"><label for=${name}>${label}</label>
  <select id=${name} value=${form[name]} onChange=${(/** @type {any} */ e) => set(name, typed(e))}>
    ${options.map(([value, text]) => html`<option value=${value}>${text}</option>`)}
  </select></div>`;
