// @ts-check
/** Published files of a job, and their hand-offs to registries. */

import { html } from "../../vendor/htm-preact.js";
import { get } from "../../api.js";
import { Card, Fault, Loading, State } from "../../components/basics.js";
import { Table } from "../../components/table.js";
import { bytes } from "../../format.js";
import { useLoaded } from "../../hooks.js";

/** @param {any[]} files */
export const totalBytes = (files) => files.reduce((total, file) => total + file.bytes, 0);

/** Let the browser save all files. The link is fetched on click, because links expire. @param {string} id */
export async function downloadAll(id) {
  const { archive } = await get(`/v1/jobs/${id}/artifacts`);
  if (!archive) throw new Error("The files have been removed.");
  const link = document.createElement("a");
  link.href = archive.url;
  link.download = archive.name;
  link.click();
}

/** @param {{ id: string, artifacts: any }} props `artifacts`: loaded by the view */
export function Files({ id, artifacts }) {
  const handOffs = useLoaded((signal) => get(`/v1/jobs/${id}/hand-offs`, signal), [id]).data?.data;
  const { data, error } = artifacts;
  return html`<div class="stack">
    <${Card} title="Files" aside=${data ? html`<span class="dim small">${data.data.length}, ${bytes(totalBytes(data.data))}</span>` : null}>
      <${Fault} error=${error} />
      ${!data && !error ? html`<${Loading} />` : null}
      ${data ? html`<${Table} label="Files" empty="The files have been removed." columns=${["File", "Size\u00a0", "SHA-256"]}
        rows=${data.data.map((/** @type {any} */ file) => [html`<a href=${file.url} download=${file.name.split("/").pop()}>${file.name}</a>`, bytes(file.bytes), html`<span class="mono digest" title=${file.sha256}>${file.sha256}</span>`])} />` : null}
    <//>
    ${handOffs?.length ? html`<${Card} title="Registry hand-offs">
      <${Table} label="Hand-offs" columns=${["Registry", "State", "Reference", "Error"]} rows=${handOffs.map((/** @type {any} */ handOff) => [handOff.target === "hub" ? "Model hub" : "MLflow", html`<${State} state=${handOff.state} />`, handOff.reference || "", handOff.error || ""])} />
    <//>` : null}
  </div>`;
}
