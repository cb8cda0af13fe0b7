// @ts-check
/** How to use a result: code that is right for its target and its files. */

import { html } from "../../vendor/htm-preact.js";
import { quoted } from "../../form/code.js";
import { titleOf } from "../../words.js";

/** @typedef {{ name: string } | null | undefined} Archive ZIP of all files, as the API names it; none where the files have been removed */

/**
 * Name of the directory that the snippets use: the one in the archive, so that code which is pasted beside an unpacked download finds it.
 * @param {any} job @param {import("../../words.js").Names} uploads @param {Archive} archive
 */
export const directoryName = (job, uploads, archive) => archive?.name.replace(/\.zip$/, "") || titleOf(job, uploads).replace(/[^\w.-]+/g, "-").replace(/^[-.]+/, "") || "compressed";

/**
 * Snippets of the runtimes that load the result, each with a hint.
 * @param {any} job @param {any} report @param {string} name name of the files' directory @param {string} origin URL of the service
 */
export function resultSnippets(job, report, name, origin) {
  const directory = `./${name}`;
  return [
    { value: "transformers", title: "transformers", ...transformers(job.compression.target, directory) },
    ...vllm(job, report, directory),
    ...llamaCpp(job.compression.exports, directory),
    { value: "cli", title: "CLI", ...commands(job, directory, origin) },
    { value: "curl", title: "curl", ...archive(job, directory, origin) },
  ];
}

/** @param {string} target @param {string} directory */
function transformers(target, directory) {
  const code = target !== "stock";
  const text = `from transformers import AutoModelForCausalLM, AutoTokenizer

path = ${JSON.stringify(directory)}
model = AutoModelForCausalLM.from_pretrained(path${code ? ", trust_remote_code=True" : ""})
tokenizer = AutoTokenizer.from_pretrained(path${code ? ", trust_remote_code=False" : ""})
inputs = tokenizer("The sea is", return_tensors="pt", return_token_type_ids=False)
output = model.generate(**inputs, max_new_tokens=40)
print(tokenizer.decode(output[0], skip_special_tokens=True))`;
  const hint = code
    ? html`Loads with the code that is part of the checkpoint. Need none? Duplicate the job for “Any runtime”.`
    : "A checkpoint of the original's own architecture: no custom code.";
  return { text, hint };
}

/** vLLM, unless the report says that the result was not made for it. @param {any} job @param {any} report @param {string} directory */
function vllm(job, report, directory) {
  const { target } = job.compression;
  const named = (report.runtimes || []).find((/** @type {string} */ runtime) => runtime.includes("vLLM"));
  if (target !== "stock" && !named) return [];
  const text = {
    research: `pip install --no-deps intraslice   # in vLLM's environment\nvllm serve ${quoted(directory)}`,
    adaptive: `vllm serve ${quoted(directory)} --trust-remote-code`,
    stock: `vllm serve ${quoted(directory)}`,
  }[/** @type {"research" | "adaptive" | "stock"} */ (target)];
  const hint = target === "stock" ? "Runs wherever the original runs." : `${named}.`;
  return text ? [{ value: "vllm", title: "vLLM", text, hint }] : [];
}

/** @param {string[]} formats @param {string} directory */
function llamaCpp(formats, directory) {
  const format = ["gguf-q8_0", "gguf-f16"].find((name) => formats.includes(name));
  if (!format) return [];
  return [{ value: "llama", title: "llama.cpp", text: `llama-server -m ${quoted(`${directory}/model-${format.slice(5)}.gguf`)}`, hint: null }];
}

/** @param {any} job @param {string} directory @param {string} origin */
const commands = (job, directory, origin) => ({
  text: `intraslice download ${job.id} ${quoted(directory)} --url ${quoted(origin)}
intraslice verify ${quoted(directory)}
intraslice generate ${quoted(directory)} "The sea is"`,
  hint: "Downloads and compares every file with its SHA-256, then lets the model write.",
});

/** @param {any} job @param {string} directory @param {string} origin */
const archive = (job, directory, origin) => ({
  text: `ANSWER=$(curl -fsS -H "Authorization: Bearer $INTRASLICE_API_KEY" \\
  ${quoted(`${origin}/v1/jobs/${job.id}/artifacts`)})
LINK=$(python3 -c 'import json, sys; print(json.loads(sys.argv[1])["archive"]["url"])' "$ANSWER")
case "$LINK" in /*) LINK=${quoted(origin)}"$LINK";; esac
curl -fsS -o ${quoted(`${directory.slice(2)}.zip`)} "$LINK"
python3 -m zipfile -e ${quoted(`${directory.slice(2)}.zip`)} .`,
  hint: html`Downloads one ZIP of all files and unpacks it as <span class="mono">${directory}</span>. The link in the answer works without a key until it expires.`,
});
