// @ts-check
/** Form for a new job or sweep, with an estimate beside it. */

import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { get, post } from "../api.js";
import { Fault, PageHead } from "../components/basics.js";
import { CodeTabs } from "../components/code.js";
import { Field, Segmented } from "../components/controls.js";
import { requestSnippets } from "../form/code.js";
import { Advanced, Calibration, Evaluation, Model, Runtime, Size } from "../form/fields.js";
import { Preview, useEstimate } from "../form/preview.js";
import { START, formOf, jobBody, missingEntry, sweepBody } from "../form/request.js";
import { reportToShell, useLoaded, useOffer } from "../hooks.js";
import { requestedAmount, titleOf } from "../words.js";

/** The form as it was left, so that adding a dataset or a model does not lose it. @type {import("../form/request.js").Form | null} */
let draft = null;
const KINDS = [["job", "Single job"], ["sweep", "Sweep: try several sizes"]];

/** @param {{ query: URLSearchParams }} props `like`: job to duplicate; `upload`, `package`, `path`: a model; `text`: a text of the server to calibrate on; `sweep`: start with a sweep; `keep`: go on with the form as it was left */
export function Submit({ query }) {
  const [form, setForm] = useState(() => initialForm(query));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [busy, setBusy] = useState(false);
  const key = useKey();
  const offer = useOffer();
  const uploads = useLoaded((signal) => get("/v1/uploads?limit=100", signal), []).data?.data;
  const ready = uploads?.filter((/** @type {any} */ upload) => upload.state === "ready");
  const set = (/** @type {string} */ name, /** @type {any} */ value) => setForm((old) => ({ ...old, [name]: value }));
  useEffect(() => {
    draft = form;
  }, [form]);
  useEffect(() => {
    const [first] = offer?.packages || [];
    // The response may arrive while the form is being filled in: keep what was entered.
    if (first) setForm((old) => (old.source === "package" && !old.ref ? { ...old, ref: first } : old));
  }, [offer]);
  useEffect(() => {
    const like = query.get("like");
    if (like) get(`/v1/jobs/${like}`).then((job) => setForm(formOf(job)), setError);
  }, []);
  const estimate = useEstimate(form);
  const sizes = estimate.answers.length === 1 ? estimate.answers[0].data.estimate : null;
  const isSweep = form.size === "sweep";
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    const [path, body, view] = isSweep ? ["/v1/sweeps", sweepBody(form), "sweeps"] : ["/v1/jobs", jobBody(form), "jobs"];
    try {
      const created = await post(path, body, { "Idempotency-Key": key(body) });
      draft = null;
      location.hash = `#/${view}/${created.id}`;
    } catch (failure) {
      setError(failure);
      reportToShell(failure);
    }
    setBusy(false);
  };
  const props = { form, set, offer, uploads: ready, sizes: sizes || estimate.answers[0]?.data.estimate, error: estimate.error || error };
  const entry = missingEntry(form);
  return html`<form onSubmit=${submit} novalidate>
    <${PageHead} trail=${[["#/jobs", "Jobs"]]} title=${isSweep ? "New sweep" : "New compression job"} about="Choose a model and how much to remove. The estimate shows the result before anything starts.">
      <${Segmented} label="Kind" name="kind" options=${KINDS} value=${isSweep ? "sweep" : "job"} choose=${(/** @type {string} */ kind) => set("size", kind === "sweep" ? "sweep" : "ratio")} />
    <//>
    <div class="two">
      <div class="stack">
        <${Model} ...${props} /><${Size} ...${props} /><${Runtime} ...${props} /><${Calibration} ...${props} /><${Evaluation} ...${props} /><${Advanced} ...${props} />
      </div>
      <aside class="stack sticky" aria-label="Start">
        <${Preview} estimate=${estimate} form=${form} offer=${offer}>
          <${Field} id="label" label="Name (optional)"><input id="label" maxlength="63" placeholder=${placeholder(form)} value=${form.label} onInput=${(/** @type {any} */ e) => set("label", e.target.value)} /><//>
          <button class="main block" disabled=${busy || Boolean(entry) || Boolean(estimate.error)}>${isSweep ? `Start sweep (${form.ratios.length * form.methods.length} jobs)` : "Start compression"}</button>
          <${Fault} error=${error} />
        <//>
        ${entry ? null : html`<${CodeTabs} id="same" title="Same as code" snippets=${requestSnippets(form, location.origin)} />`}
      </aside>
    </div>
  </form>`;
}

/** @param {URLSearchParams} query */
function initialForm(query) {
  const [upload, preset, path, text] = ["upload", "package", "path", "text"].map((name) => query.get(name));
  if (query.has("keep") && draft) return draft;
  return {
    ...START,
    ...(upload ? { source: "upload", ref: upload } : {}),
    ...(preset ? { source: "package", ref: preset } : {}),
    ...(path ? { source: "path", ref: path } : {}),
    ...(text ? { texts: [...START.texts, text] } : {}),
    ...(query.has("sweep") ? { size: "sweep" } : {}),
  };
}

/** @param {import("../form/request.js").Form} form */
function placeholder(form) {
  const model = titleOf({ model: form });
  return form.size === "ratio" ? `${model}-${requestedAmount({ ratio: form.ratio }).split(" ")[0]}` : `${model}-${form.size}`;
}

/** Idempotency keys: the same for a repeated request, another for a changed one. */
function useKey() {
  const last = useRef({ body: "", key: "" });
  return (/** @type {any} */ body) => {
    const text = JSON.stringify(body);
    if (last.current.body !== text) {
      last.current = { body: text, key: `dashboard-${crypto.randomUUID?.() || Math.random()}` };
    }
    return last.current.key;
  };
}
