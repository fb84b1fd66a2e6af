"use strict";
// Fetches this page again and takes over the parts that have changed: what they look like is known to the daemon alone.
const lost = document.getElementById("lost");
async function update() {
  if (!document.hidden) {
    try {
      const answer = await fetch("./", { cache: "no-store", signal: AbortSignal.timeout(10000) });
      if (!answer.ok) throw new Error(answer.statusText);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const next = page.getElementById(part.id);
        if (next && next.innerHTML !== part.innerHTML) part.replaceChildren(...next.childNodes);
      }
      document.title = page.title;
      lost.hidden = true;
    } catch {
      document.title = "No answer – " + document.querySelector("h1").textContent + " – edged";
      lost.hidden = false;
    }
  }
  setTimeout(update, 5000);
}
setTimeout(update, 5000);
