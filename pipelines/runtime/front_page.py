"""The service's page: drop a picture, and below it appears what `dri-iqa explain` says of it.

Its script only sends the file and shows the answer; drawing is all the explanation's own. Without scripts the form
still works: the answer is then a page of its own.
"""

from __future__ import annotations

from dri_iqa.evaluation import page
from dri_iqa.explain_page import STYLE
from dri_iqa.scoring import Scorer
from pipelines.runtime.serve_config import ServeConfig

_STYLE = (
    STYLE
    + """
.drop { display: block; margin-top: 1.5rem; padding: 2.6rem 1.2rem; text-align: center; cursor: pointer;
  background: var(--card); border: 2px dashed var(--line); border-radius: 14px;
  transition: border-color .15s, background .15s; }
.drop b { display: block; font-size: 1.2rem; font-weight: 600; }
.drop span { color: var(--soft); }
.drop.over, .drop:hover, #file:focus-visible + .drop { border-color: var(--accent); }
.drop.over { background: var(--ground); }
#file { position: absolute; opacity: 0; width: 1px; height: 1px; }
#ask.done .drop { padding: 1.1rem; } #ask.done .drop b { font-size: 1rem; }
button { margin: .8rem auto 0; display: block; font: inherit; padding: .4rem 1.4rem; }
.scripted button { display: none; }
#said { margin: 1rem 0 0; min-height: 1.5rem; text-align: center; color: var(--soft); }
#said.failed { padding: .7rem 1rem; border-radius: 12px; color: var(--warn);
  background: var(--warnback); }
#result header { margin-top: 1.2rem; } #result h1 { font-size: 1.35rem; }
#result.old { opacity: .4; }
"""
)
_BODY = """
<form id="ask" action="explain" method="post" enctype="multipart/form-data">
<input id="file" name="image" type="file" accept="image/*" required>
<label class="drop" for="file"><b>Drop a picture here</b><span>or choose a file, or paste one</span></label>
<button>Score it</button></form>
<p id="said" role="status"></p><div id="result" aria-live="polite"></div>
"""
_SCRIPT = """
const ask = document.getElementById("ask"), file = document.getElementById("file");
const drop = document.querySelector(".drop"), said = document.getElementById("said");
const result = document.getElementById("result");
let latest = 0;
document.body.classList.add("scripted");

function say(words, failed) {
  said.textContent = words;
  said.classList.toggle("failed", Boolean(failed));
}

async function words(answer) {
  if (answer.status === 503) return "Too many pictures are waiting; try again in a moment.";
  if (answer.status === 408) return "This took too long and was given up.";
  const body = await answer.text();
  try { return `${said.dataset.name} cannot be scored: ${JSON.parse(body).error}.`; }
  catch { return `The server answered ${answer.status}.`; }
}

async function send(picture) {
  const turn = ++latest, form = new FormData();
  form.append("image", picture, picture.name || "pasted picture");
  said.dataset.name = picture.name || "The picture";
  say(`Scoring ${said.dataset.name} \\u2026`);
  result.classList.add("old");
  let failure = "", text = "";
  try {
    const answer = await fetch("explain", {method: "POST", body: form});
    if (answer.ok) text = await answer.text(); else failure = await words(answer);
  } catch { failure = "The server cannot be reached, or refused a file of this size."; }
  if (turn !== latest) return;
  result.classList.remove("old");
  if (failure) { result.replaceChildren(); say(failure, true); return; }
  const found = new DOMParser().parseFromString(text, "text/html").querySelector("main");
  found.querySelector("footer").remove();
  result.replaceChildren(...found.children);
  ask.classList.add("done");
  say("");
}

file.addEventListener("change", () => { if (file.files.length) send(file.files[0]); file.value = ""; });
document.addEventListener("paste", (event) => {
  const pasted = event.clipboardData.files;
  if (pasted.length) send(pasted[0]);
});
for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
for (const name of ["dragleave", "drop"]) document.addEventListener(name, (event) => {
  event.preventDefault();
  drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  const dropped = event.dataTransfer.files;
  if (dropped.length) send(dropped[0]);
  else say("Drop a file: what was dropped is none.", true);
});
"""


def front_page(scorer: Scorer, config: ServeConfig) -> str:
    """The page for this model."""
    scale = scorer.head.score
    better = "higher" if scale.higher_is_better else "lower"
    summary = (
        f"How good does a picture look, without anything to compare it with? {scale.name}, "
        f"{scale.lo:.4g} to {scale.hi:.4g}, {better} is better.\n"
        f"JPEG, PNG, WebP, TIFF, BMP, AVIF up to {config.max_body_mb:g} MB; it is scored and forgotten."
    )
    legend = f"Model {scorer.name}."
    return page.document(
        "Picture quality", summary, _BODY, style=_STYLE, legend=legend, script=_SCRIPT
    )
