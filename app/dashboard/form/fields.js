// @ts-check
/** Cards of the form: model, amount, runtime, calibration, evaluation, advanced settings. */

import { html, useState } from "../vendor/htm-preact.js";
import { Card } from "../components/basics.js";
import { Chip, Field, OptionCards, Segmented, describedBy } from "../components/controls.js";
import { Browse, PathButton } from "../components/paths.js";
import { bytes, count, percent, share } from "../format.js";
import { errorBeside } from "../problems.js";
import { RECOVERIES, SOURCES, allocationName, textName } from "../words.js";
import { trainsMasks } from "./masks.js";
import { ALLOCATIONS, CALIBRATIONS, RATIOS, allowedTexts, calibrationName, methodOptions, methodsOf } from "./request.js";

/**
 * @typedef {import("./request.js").Form} Form
 * @typedef {{ form: Form, set: (name: string, value: any) => void, offer?: any, uploads?: any[], sizes?: any, error?: any }} Props
 *   `sizes`: the estimate of the newest answer, null if there is none; `error`: the error of the newest validation
 */

/** @param {any} event */
const typed = (event) => event.target.value;

/** An input with its label, hint and error. @param {Props & { name: keyof Form & string, label: any, pointers?: string[], hint?: any, type?: string, [attribute: string]: any }} props */
function Input({ name, label, pointers, hint, type = "text", form, set, error, offer, uploads, sizes, convert, ...attributes }) {
  const fault = pointers && errorBeside(error, pointers);
  return html`<${Field} id=${name} label=${label} hint=${hint} error=${fault}>
    <input id=${name} type=${type} value=${form[name] ?? ""} aria-invalid=${fault ? "true" : undefined} aria-describedby=${describedBy(name, hint, fault)}
      onInput=${(/** @type {any} */ e) => set(name, convert ? convert(typed(e)) : typed(e))} ...${attributes} />
  <//>`;
}

/** @param {Props & { name: keyof Form & string, label: string, options: string[][], hint?: any, pointers?: string[] }} props */
function Select({ name, label, options, hint, pointers, form, set, error }) {
  const fault = pointers && errorBeside(error, pointers);
  return html`<${Field} id=${name} label=${label} hint=${hint} error=${fault}>
    <select id=${name} value=${form[name]} aria-describedby=${describedBy(name, hint, fault)} onChange=${(/** @type {any} */ e) => set(name, typed(e))}>
      ${options.map(([value, text]) => html`<option value=${value}>${text}</option>`)}
    </select>
  <//>`;
}

/** A chip for one value of a list. @param {Props & { list: "texts" | "evaluate" | "exports" | "ratios" | "methods", value: any, label?: string }} props */
function ListChip({ list, value, label, form, set }) {
  /** @type {any[]} */
  const selected = form[list];
  const toggle = () => {
    const next = selected.includes(value) ? selected.filter((other) => other !== value) : [...selected, value];
    set(list, list === "ratios" ? next.sort((a, b) => a - b) : next);
  };
  return html`<${Chip} checked=${selected.includes(value)} toggle=${toggle}>${label || value}<//>`;
}

/** @param {Props} props */
export function Model(props) {
  const { form, set, offer, uploads, sizes, error } = props;
  const models = (uploads || []).filter((upload) => upload.kind === "model");
  const choose = (/** @type {string} */ source) => {
    set("source", source);
    set("ref", source === "package" ? offer?.packages[0] || "" : source === "upload" ? models[0]?.id || "" : "");
  };
  const suggestions = form.source === "package" ? offer?.packages : form.source === "hub" ? offer?.hub : null;
  const fault = form.ref ? errorBeside(error, ["/model"]) : undefined;
  return html`<${Card} title="1 · Model" aside=${html`<${Segmented} label="Model source" name="source" options=${Object.entries(SOURCES)} value=${form.source} choose=${choose} />`}>
    <${Field} id="ref" label="Model" hint=${sourceHint(form.source, offer, models)} error=${fault}>
      ${form.source === "upload" ? html`<select id="ref" value=${form.ref} aria-describedby="ref-hint" onChange=${(/** @type {any} */ e) => set("ref", typed(e))}>
        ${form.ref && !models.some((upload) => upload.id === form.ref) ? html`<option value=${form.ref}>${form.ref}</option>` : null}
        ${models.map((upload) => html`<option value=${upload.id}>${upload.name || upload.id}</option>`)}
      </select>` : html`<input id="ref" list="suggestions" value=${form.ref} required autocomplete="off" aria-describedby="ref-hint" onInput=${(/** @type {any} */ e) => set("ref", typed(e))} />
      <datalist id="suggestions">${(suggestions || []).map((/** @type {string} */ name) => html`<option value=${name} />`)}</datalist>`}
    <//>
    ${form.source === "path" && offer?.roots.length ? html`<${Browse} summary="Browse the server" use="model" label="Models of the server" action=${(/** @type {import("../components/paths.js").Entry} */ entry) => html`<${PathButton} entry=${entry} verb="Choose" press=${() => set("ref", entry.path)} />`} />` : null}
    ${form.source === "hub" ? html`<${Input} ...${props} name="revision" label="Revision (optional)" pointers=${["/model/revision"]} hint="Branch, tag or commit. Empty: the main branch." />` : null}
    ${sizes ? html`<p class="sub small">${count(sizes.params_before)} parameters · ${bytes(sizes.bytes_before)} of weights</p>` : null}
  <//>`;
}

/** @param {string} source @param {any} offer @param {any[]} models */
function sourceHint(source, offer, models) {
  if (source === "upload") return html`${models.length ? "" : "No uploads yet. "}<a href="#/models">Upload a model</a>`;
  if (!offer) return "";
  if (source === "package") return offer.packages.length ? `Presets: ${offer.packages.join(", ")}.` : "This server has no presets.";
  if (source === "hub") return offer.hub.length ? `Allowed: ${offer.hub.join(", ")}.` : "Hub models are disabled on this server.";
  return offer.roots.length ? `Enter an absolute path under ${offer.roots.join(" or ")}.` : "Server paths are disabled on this server.";
}

const SIZES = [["ratio", "Percentage"], ["params", "Parameter count"], ["bytes", "File size"]];

/** @param {Props} props */
export function Size(props) {
  const { form, set, sizes } = props;
  const choose = (/** @type {string} */ size) => {
    set("size", size);
    // The size of the current estimate, so that the field begins with a possible value.
    if (size === "params" && !form.params && sizes) set("params", String(Number((sizes.params_after / 1e6).toPrecision(4))));
    if (size === "bytes" && !form.mebibytes && sizes) set("mebibytes", String(Number((sizes.bytes_after / 2 ** 20).toPrecision(4))));
  };
  const aside = form.size === "sweep" ? null : html`<${Segmented} label="Amount in" name="size" options=${SIZES} value=${form.size} choose=${choose} />`;
  return html`<${Card} title="2 · How much to remove" aside=${aside}><${Amount} ...${props} /><//>`;
}

/** @param {Props} props */
function Amount(props) {
  const { form, set, sizes, error } = props;
  if (form.size === "params")
    return html`<${Input} ...${props} name="params" type="number" min="0.001" step="any" label="Parameters of the result, in millions" pointers=${["/compression/target_params"]}
      hint=${sizes ? `The model has ${count(sizes.params_before)} parameters.` : null} />`;
  if (form.size === "bytes")
    return html`<${Input} ...${props} name="mebibytes" type="number" min="0.001" step="any" label="Weights of the result, in MiB" pointers=${["/compression/target_bytes"]}
      hint=${sizes ? `The model's weights take ${bytes(sizes.bytes_before)}.` : null} />`;
  if (form.size === "sweep") return html`<${SweepAmount} ...${props} />`;
  const removed = sizes ? 1 - sizes.params_after / sizes.params_before : null;
  const fault = errorBeside(error, ["/compression/ratio"]);
  return html`<${Field} id="ratio" error=${fault} label=${`Remove ${share(form.ratio)} of layer weights${removed === null ? "" : ` (${percent(removed)} of the model)`}`}
      hint="Layer weights are those of attention and MLP; embeddings are kept. Small models such as the preset continue text sensibly up to about 10 %. For larger ones 20 to 30 % is usual.">
    <div class="chips">${[[0.1, "light"], [0.2, "moderate"], [0.3, "strong"], [0.4, "very strong"]].map(([ratio, name]) => html`<button type="button" class=${`chip ${form.ratio === ratio ? "chosen" : ""}`} aria-pressed=${form.ratio === ratio ? "true" : "false"} onClick=${() => set("ratio", ratio)}>${share(Number(ratio))} · ${name}</button>`)}</div>
    <input id="ratio" type="range" min="0.05" max="0.6" step="0.05" value=${form.ratio} aria-describedby=${describedBy("ratio", true, fault)} onInput=${(/** @type {any} */ e) => set("ratio", Number(typed(e)))} />
    <p class="spread dim tiny"><span>5 %</span><span>quality falls steeply above 40 %</span><span>60 %</span></p>
  <//>`;
}

/** @param {Props} props */
function SweepAmount(props) {
  const { form, set, offer } = props;
  const ratios = [...new Set([...RATIOS, ...form.ratios])].sort((a, b) => a - b);
  const add = (/** @type {any} */ event) => {
    const ratio = Number(typed(event)) / 100;
    if (ratio > 0 && ratio < 1 && !form.ratios.includes(ratio)) set("ratios", [...form.ratios, ratio].sort((a, b) => a - b));
    event.target.value = "";
  };
  return html`<div class="stack">
    <div><p class="label" id="ratios">Percentages of layer weights to remove</p>
      <div class="chips" role="group" aria-labelledby="ratios">${ratios.map((ratio) => html`<${ListChip} ...${props} list="ratios" value=${ratio} label=${share(ratio)} />`)}
        <input class="inline" type="number" min="1" max="99" step="any" placeholder="Other %" aria-label="Another percentage" onChange=${add} /></div></div>
    <div><p class="label" id="methods">Methods to compare</p>
      <div class="chips" role="group" aria-labelledby="methods">${methodOptions(offer, form).map(([name, title]) => html`<${ListChip} ...${props} list="methods" value=${name} label=${title} />`)}</div></div>
    <p class="hint">One job for each percentage and method; statistics that do not depend on them are computed once.</p>
  </div>`;
}

const RUNTIMES = [
  { value: "research", title: "Best quality", tag: "research", detail: "transformers, custom code: every layer gets its own shape. Needs trust_remote_code, or our package in vLLM." },
  { value: "adaptive", title: "vLLM and llama.cpp", tag: "adaptive", detail: "Nearly the same quality. DeciLM architecture, GGUF files on request. Llama and Mistral models." },
  { value: "stock", title: "Any runtime", tag: "stock", detail: "Standard architecture, no custom code: the most compatible. All layers have the same shape, which costs quality." },
];

/** @param {Props} props */
export const Runtime = ({ form, set, error }) => html`<${Card} title="3 · Where will you run it?">
  <${OptionCards} label="Where will you run it?" name="target" options=${RUNTIMES} value=${form.target} choose=${(/** @type {string} */ target) => set("target", target)} />
  ${errorBeside(error, ["/compression/target"]) ? html`<p class="fault small" role="alert">${errorBeside(error, ["/compression/target"])}</p>` : null}
<//>`;

/** Texts to choose from: the server's, the project's uploads, and others that the form already names. @param {"texts" | "evaluate"} list @param {string[]} included @param {Props} props */
function textChips(list, included, props) {
  const uploaded = (props.uploads || []).filter((upload) => upload.kind === "text").map((upload) => [`upload:${upload.id}`, upload.name || upload.id]);
  const available = [...included.map((text) => [text, textName(text)]), ...uploaded];
  const others = props.form[list].filter((text) => !available.some(([name]) => name === text)).map((text) => [text, textName(text)]);
  return [...available, ...others].map(([value, label]) => html`<${ListChip} ...${props} list=${list} value=${value} label=${label} />`);
}

/** Texts of the server, where jobs may name some. @param {Props & { list: "texts" | "evaluate" }} props */
function ServerTexts({ list, form, set, offer }) {
  if (!offer?.data_roots.length) return null;
  const add = (/** @type {string} */ path) => form[list].includes(path) || set(list, [...form[list], path]);
  return html`<${Browse} summary="Add a text of the server" use="data" label=${`Texts of the server for ${list === "texts" ? "calibration" : "evaluation"}`}
    action=${(/** @type {import("../components/paths.js").Entry} */ entry) => html`<${PathButton} entry=${entry} verb="Add" press=${() => add(entry.path)} />`} />`;
}

/** Data sets of the Hub, where jobs may name some. @param {Props & { list: "texts" | "evaluate" }} props */
function HubTexts({ list, form, set, offer }) {
  const [name, setName] = useState("");
  if (!offer?.hub_data.length) return null;
  const add = () => {
    const text = `hub:${name.trim().replace(/^hub:/, "")}`;
    if (name.trim() && !form[list].includes(text)) set(list, [...form[list], text]);
    setName("");
  };
  const enter = (/** @type {any} */ event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    add();
  };
  const id = `hub-${list}`;
  return html`<details class="plain"><summary>Add a data set of the Hugging Face Hub</summary>
    <${Field} id=${id} label="Data set" hint=${`As ORGANISATION/NAME, with :CONFIG and @SPLIT where it has several. Allowed: ${offer.hub_data.join(", ")}.`}>
      <span class="actions"><input id=${id} class="inline" value=${name} autocomplete="off" aria-describedby=${`${id}-hint`} onInput=${(/** @type {any} */ e) => setName(typed(e))} onKeyDown=${enter} />
        <button type="button" class="small" disabled=${!name.trim()} onClick=${add}>Add</button></span>
    <//>
  </details>`;
}

/** Texts whose records may have several fields: all but plain text. @param {string[]} texts @param {any[] | undefined} uploads */
const withRecords = (texts, uploads) => texts.filter((text) => /^(hub:|upload:|\/)/.test(text) && !/\.(txt|md)(\.gz|\.zst)?$/i.test(named(text, uploads)));

/** Field of the records that holds the text, where a chosen text has records. @param {Props & { list: "texts" | "evaluate", name: "text_field" | "evaluate_field", pointer: string }} props */
function TextField({ list, pointer, ...props }) {
  const texts = withRecords(props.form[list], props.uploads).map((text) => named(text, props.uploads));
  if (!texts.length && !props.form[props.name]) return null;
  return html`<${Input} ...${props} label="Field of the text (optional)" maxlength="200" pointers=${[pointer]}
    hint=${`Which field or column of ${texts.join(", ") || "the records"} holds the text or the chat. Empty: text, content, messages and other usual names.`} />`;
}

/** @param {Props} props */
export function Calibration(props) {
  const { form, set, offer, error } = props;
  const name = calibrationName(form);
  const options = [...Object.entries(CALIBRATIONS).map(([value, { title }]) => [value, title]), ...(name === "custom" ? [["custom", "Custom"]] : [])];
  const choose = (/** @type {string} */ value) => {
    if (!CALIBRATIONS[value]) return;
    set("samples", CALIBRATIONS[value].samples);
    set("sequence_length", CALIBRATIONS[value].sequence_length);
  };
  const fault = errorBeside(error, ["/compression/calibration/source"]);
  return html`<${Card} title="4 · Calibration data" aside=${html`<${Segmented} label="Amount of calibration data" name="calibration" options=${options} value=${name} choose=${choose} />`}>
    <fieldset><legend class="hidden">Calibration texts</legend>
      <div class="chips">${textChips("texts", allowedTexts(offer), props)}<a class="button small" href="#/datasets">+ Add dataset</a></div>
      <${ServerTexts} ...${props} list="texts" />
      <${HubTexts} ...${props} list="texts" />
      <${TextField} ...${props} list="texts" name="text_field" pointer="/compression/calibration/text_field" />
      ${fault ? html`<p class="fault small" role="alert">${fault}</p>` : null}
    </fieldset>
    <p class="hint">${form.samples} samples of ${form.sequence_length} tokens, ${count(form.samples * form.sequence_length)} in all. “Thorough” is the default of the command line. The model keeps best what it is calibrated on: add text like yours. The model itself writes the generated texts, which takes time.</p>
  <//>`;
}

/** @param {Props} props */
export function Evaluation(props) {
  const { form, set, offer, error } = props;
  const prompts = form.prompts.split("\n").filter((line) => line.trim()).length;
  const parts = [
    `perplexity on ${form.evaluate.length} ${form.evaluate.length === 1 ? "text" : "texts"}`,
    form.benchmark ? "speed" : "",
    prompts ? `${prompts} sample ${prompts === 1 ? "prompt" : "prompts"}` : "",
    form.tasks.trim() ? "tasks" : "",
  ].filter(Boolean);
  const unseen = form.evaluate.filter((text) => !form.texts.includes(text)).map((text) => named(text, props.uploads));
  const fault = errorBeside(error, ["/evaluation/perplexity"]);
  return html`<details class="card" open=${Boolean(fault) || undefined}>
    <summary>Evaluation <span class="sub small">${parts.join(", ")}</span></summary>
    <div class="body">
      <fieldset><legend>Evaluation texts</legend>
        <div class="chips">${textChips("evaluate", evaluationTexts(offer), props)}</div>
        <${ServerTexts} ...${props} list="evaluate" />
        <${HubTexts} ...${props} list="evaluate" />
        <${TextField} ...${props} list="evaluate" name="evaluate_field" pointer="/evaluation/text_field" />
        ${fault ? html`<p class="fault small" role="alert">${fault}</p>` : null}
        <p class="hint">${unseen.length ? `Unseen by the calibration: ${unseen.join(", ")}. Such texts tell what real use will be like.` : "Every text is also used for calibration: scores will look better than real use."}</p>
      </fieldset>
      <label class="check"><input type="checkbox" checked=${form.benchmark} onChange=${() => set("benchmark", !form.benchmark)} />Benchmark speed</label>
      <${Field} id="prompts" label="Sample prompts" hint="One in each line, at most 8. Both models continue them, side by side." error=${errorBeside(error, ["/evaluation/prompts"])}>
        <textarea id="prompts" rows="4" value=${form.prompts} aria-describedby="prompts-hint" onInput=${(/** @type {any} */ e) => set("prompts", typed(e))}></textarea>
      <//>
      <div class="columns">
        <${Input} ...${props} name="tasks" label="Evaluation tasks (optional)" placeholder="arc_easy, hellaswag" pointers=${["/evaluation/tasks"]} hint="Of lm-evaluation-harness; workers need the extra eval and the tasks' data." />
        <${Input} ...${props} name="task_limit" type="number" min="1" label="Examples per task" pointers=${["/evaluation/task_limit"]} hint="Empty: all." />
        <${Input} ...${props} name="gate" type="number" min="1.001" step="any" label="Quality gate (optional)" pointers=${["/evaluation/gate"]} hint="Fail the job if the perplexity rises by more than this factor on any text, for example 1.5." />
      </div>
    </div>
  </details>`;
}

/** Texts with parts that are held out for the evaluation. @param {any} offer */
const evaluationTexts = (offer) => ["pydoc", "pycode", ...allowedTexts(offer).filter((text) => text === "web")];

/** @param {string} text @param {any[] | undefined} uploads */
const named = (text, uploads) => textName(text, new Map((uploads || []).map((upload) => [upload.id, upload.name || upload.id])));

/** @param {Props} props */
export function Advanced(props) {
  const { form, offer } = props;
  const whole = (/** @type {string} */ value) => Number(value);
  return html`<details class="card">
    <summary>Advanced settings</summary>
    <div class="body">
      <div class="columns">
        ${form.size === "sweep" ? null : html`<${Select} ...${props} name="method" label="Method" options=${methodOptions(offer, form)} pointers=${["/compression/method"]} />`}
        <${Select} ...${props} name="allocation" label="Allocation method" options=${ALLOCATIONS.map((name) => [name, allocationName(name)])} pointers=${["/compression/allocation"]} />
        <${Select} ...${props} name="recover" label="Recovery training" options=${RECOVERIES} pointers=${["/compression/recover"]} hint="Fine-tunes the result; takes a multiple of the time." />
        <${Input} ...${props} name="samples" type="number" min="2" label="Samples" convert=${whole} pointers=${["/compression/calibration/samples"]} />
        <${Input} ...${props} name="sequence_length" type="number" min="16" label="Tokens per sample" convert=${whole} pointers=${["/compression/calibration/sequence_length"]} />
        <${Input} ...${props} name="round_to" type="number" min="1" label="Round dimensions to" convert=${(/** @type {string} */ value) => (value ? Number(value) : null)} pointers=${["/compression/round_to"]}
          hint="Multiples of this number. Empty: 8, less for narrow models. 32 or 64 suit GPUs." />
        <${Input} ...${props} name="priority" type="number" min="0" max="9" label="Priority" convert=${whole} pointers=${["/priority"]} hint="0 to 9; queued jobs with a higher one start first." />
      </div>
      ${methodsOf(form).length && methodsOf(form).every(trainsMasks) ? html`<${MaskTraining} ...${props} />` : null}
      <fieldset><legend>Additional file formats</legend>
        ${form.target === "research" ? html`<p class="hint">None for transformers with custom code.</p>` : html`<div class="chips">${["gguf-f16", "gguf-q8_0"].map((format) => html`<${ListChip} ...${props} list="exports" value=${format} />`)}</div>`}
      </fieldset>
    </div>
  </details>`;
}

/** Training of masks, for the methods that have it. @param {Props} props */
const MaskTraining = (props) => html`<fieldset><legend>Mask training</legend>
  <p class="hint">The method chooses what stays by masks. Training suits the choice to the calibration text, not to other text, and takes time. Empty fields: no training.</p>
  <div class="columns">
    <${Input} ...${props} name="mask_tokens" type="number" min="16" label="Tokens to train on" placeholder="for example 1000000" pointers=${["/compression/mask_training/max_tokens"]} />
    <${Input} ...${props} name="mask_seconds" type="number" min="1" label="Time limit in seconds" pointers=${["/compression/mask_training/max_seconds"]} />
  </div>
  ${errorBeside(props.error, ["/compression/mask_training"]) ? html`<p class="fault small" role="alert">${errorBeside(props.error, ["/compression/mask_training"])}</p>` : null}
</fieldset>`;
