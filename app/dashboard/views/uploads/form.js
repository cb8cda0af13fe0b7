// @ts-check
/** Uploads from this computer: the form, and the list of what was sent. */

import { html, useEffect, useRef, useState } from "../../vendor/htm-preact.js";
import { remove } from "../../api.js";
import { Action } from "../../components/actions.js";
import { Card, Fault, Moment, State } from "../../components/basics.js";
import { Table } from "../../components/table.js";
import { ago, bytes, percent } from "../../format.js";
import { reportToShell } from "../../hooks.js";
import { modelFiles, uploadParcel } from "../../transfer.js";

/** @param {{ label: string, empty: string, uploads: any[], reload: () => void }} props */
export const Uploads = ({ label, empty, uploads, reload }) => html`<${Table} label=${label} empty=${empty}
  columns=${["Name", "Size\u00a0", "State", "Uploaded", ""]} rows=${uploads.map((upload) => row(upload, reload))} />`;

/** @param {any} upload @param {() => void} reload */
const row = (upload, reload) => [
  html`<b>${upload.name || "–"}</b><br /><span class="mono dim">${upload.id}</span>`,
  bytes(upload.bytes),
  html`<${State} state=${upload.state} />${upload.error ? html`<p class="fault small">${upload.error.message}</p>` : null}`,
  html`<${Moment} moment=${upload.created_at} text=${ago(upload.created_at)} />`,
  html`<span class="actions">
    ${upload.kind === "model" && upload.state === "ready" ? html`<a class="button small" href=${`#/new?upload=${upload.id}`}>Compress<span class="hidden"> ${upload.name || upload.id}</span></a>` : null}
    <${Action} kind="small danger" label=${`Delete ${upload.name || upload.id}`} confirm=${`Delete ${upload.name || upload.id} and its files?`} work=${async () => { await remove(`/v1/uploads/${upload.id}`); reload(); }}>Delete<//>
  </span>`,
];

/** @param {{ kind: "model" | "text", title: string, hint: string, done: () => void }} props */
export function UploadForm({ kind, title, hint, done }) {
  const [files, setFiles] = useState(/** @type {File[]} */ ([]));
  const [skipped, setSkipped] = useState(/** @type {string[]} */ ([]));
  const [progress, setProgress] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [uploaded, setUploaded] = useState(/** @type {any} */ (null));
  const stop = useRef(/** @type {AbortController | null} */ (null));
  useEffect(() => () => stop.current?.abort(), []);
  const choose = (/** @type {any} */ event) => {
    const selected = /** @type {File[]} */ ([...event.target.files]);
    const { accepted, skipped } = kind === "model" ? modelFiles(selected) : { accepted: selected, skipped: [] };
    setFiles(accepted);
    setSkipped(skipped);
    setError(null);
    setUploaded(null);
  };
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const { signal } = (stop.current = new AbortController());
    setError(null);
    try {
      setUploaded(await uploadParcel({ kind, name: uploadName(kind, files), files }, setProgress, signal));
    } catch (failure) {
      if (!signal.aborted) setError(failure);
      reportToShell(failure);
    }
    setProgress(null);
    done();
  };
  const id = `${kind}-files`;
  return html`<form onSubmit=${send}><${Card} title=${title}>
    <div class="stack">
      <div><label for=${id}>${kind === "model" ? "Directory" : "File"}</label>
        <input id=${id} type="file" webkitdirectory=${kind === "model"} accept=${kind === "text" ? ".txt,.md,.jsonl,.json,.csv,.parquet,.gz,.zst" : undefined}
          aria-describedby=${`${id}-hint`} disabled=${progress !== null} onChange=${choose} />
        <p class="hint" id=${`${id}-hint`}>${hint}</p></div>
      ${files.length ? html`<p class="small">${files.length} ${files.length === 1 ? "file" : "files"}, ${bytes(files.reduce((sum, file) => sum + file.size, 0))}.${skipped.length ? ` Not uploaded: ${skipped.slice(0, 4).join(", ")}${skipped.length > 4 ? ` and ${skipped.length - 4} more` : ""}.` : ""}</p>` : null}
      ${skipped.length && !files.length ? html`<p class="fault">No model files found: choose the directory that contains config.json.</p>` : null}
      ${progress ? html`<${Transfer} progress=${progress} />` : null}
      <div class="actions">
        <button class="main" disabled=${!files.length || progress !== null}>Upload</button>
        ${progress ? html`<button type="button" onClick=${() => stop.current?.abort()}>Cancel</button>` : null}
      </div>
      ${uploaded ? html`<p role="status">Upload complete. ${kind === "model" ? html`<a href=${`#/new?upload=${uploaded.id}`}>Compress this model</a>` : html`Use it in a <a href="#/new?keep">job</a>, under “Calibration data” or “Evaluation”.`}</p>` : null}
      <${Fault} error=${error} />
    </div>
  <//></form>`;
}

const STAGES = { reading: "Computing checksums", sending: "Uploading", checking: "Verifying" };

/** @param {{ progress: import("../../transfer.js").Progress }} props */
const Transfer = ({ progress }) => html`<div><progress max="1" value=${progress.stage === "checking" ? undefined : progress.done / progress.total} aria-label=${STAGES[progress.stage]}></progress>
  <p class="small" role="status">${STAGES[progress.stage]}${progress.stage === "checking" ? " …" : ` · ${percent(progress.done / progress.total, 0)}`}</p></div>`;

/** @param {string} kind @param {File[]} files */
const uploadName = (kind, files) => (kind === "model" ? files[0].webkitRelativePath.split("/")[0] || "model" : files[0].name).slice(0, 200);
