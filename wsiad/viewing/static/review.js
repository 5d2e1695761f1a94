// Judgements on regions: who judges, what is said, what is sent and taken back.
const marks = { accepted: "✓ accepted", rejected: "✗ rejected", disputed: "⚑ disputed" };
const byId = (id) => document.getElementById(id);

const kept = () => {
  try {
    return localStorage.getItem("reviewer") ?? "";
  } catch {
    return "";
  }
};

// `state` is the page's. `regions` returns the outlines on the slide, `choose` a region, `open` a
// slide, `say` a message, and `leave` gives the keyboard back to the slide.
export const createReview = (state, { regions, choose, open, say, leave }) => {
  let reviewer = "", sending = Promise.resolve();
  const done = [];
  const review = () => state.slide?.reviews[state.chosen];
  const mine = () => review()?.judgements.find((one) => one.reviewer === reviewer);
  const show = () => {
    const now = review();
    byId("review").disabled = !now;
    byId("review").hidden = Boolean(state.readOnly);
    byId("which").textContent = now ? `${state.chosen + 1}` : "–";
    for (const [id, verdict] of [["accept", "accepted"], ["reject", "rejected"]])
      byId(id).setAttribute("aria-pressed", mine()?.verdict === verdict);
    byId("comment").value = mine()?.comment ?? "";
    byId("undo").disabled = !done.length;
    const others = (now?.judgements ?? []).filter((one) => one.reviewer !== reviewer);
    byId("said").textContent = others.map((one) => `${one.reviewer}: ${one.verdict || "comment"}${one.comment ? ` – ${one.comment}` : ""}`).join("; ");
    byId("reviewer").textContent = reviewer ? `Reviewer: ${reviewer}` : "";
    byId("rename").hidden = !reviewer;
    [...byId("regions").querySelectorAll("button")].forEach((button, i) => {
      const { verdict, judgements } = state.slide.reviews[i];
      button.dataset.verdict = verdict || (judgements.length ? "comment" : "");
      button.querySelector(".mark").textContent = marks[verdict] ?? (judgements.length ? "✎ comment" : "");
    });
    regions().forEach((g, i) => { g.dataset.verdict = state.slide.reviews[i].verdict; });
    const judged = state.slide ? state.slide.reviews.filter((one) => one.verdict).length : 0;
    const item = byId("slides").children[state.place - 1]?.querySelector(".judged");
    if (item) item.textContent = judged ? `${judged} judged` : "";
  };
  const asked = () => new Promise((resolve) => {
    const dialog = byId("ask");
    byId("asked").value = reviewer;
    const close = (named) => {
      const name = byId("asked").value.trim().replace(/\s+/g, " ");
      if (named && !name) return;
      if (named) reviewer = name;
      if (named) try { localStorage.setItem("reviewer", name); } catch { /* a browser that keeps nothing */ }
      dialog.close();
      resolve(Boolean(reviewer) && named);
    };
    byId("named").onclick = () => close(true);
    byId("unnamed").onclick = () => close(false);
    byId("asked").onkeydown = (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // else it would press the button that has the focus again
      close(true);
    };
    dialog.oncancel = () => resolve(false);
    dialog.showModal();
    byId("asked").focus();
  });
  // One after the other: quick keys keep their order, and each builds on what the one before stored.
  const inTurn = (work) => {
    sending = sending.then(work, work);
    return sending;
  };
  const send = async (place, slide, judgement) => {
    const answer = await fetch(`slide/${place}/review`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(judgement) })
      .catch(() => null);
    if (!answer?.ok) {
      say(answer ? `Not stored: ${await answer.text()}` : "Not stored: wsiad view does not answer any more.");
      return null;
    }
    const { before, ...stored } = await answer.json();
    Object.assign(slide, stored);
    if (slide === state.slide) show();
    return before;
  };
  // What changes follows from what this reviewer said before.
  const judge = async (change) => {
    const { place, slide } = state, id = review()?.id;
    if (state.readOnly || !id || (!reviewer && !(await asked()))) return;
    const by = reviewer;
    await inTurn(async () => {
      const told = slide.reviews.find((one) => one.id === id)?.judgements.find((one) => one.reviewer === by);
      const now = { verdict: told?.verdict ?? "", comment: told?.comment ?? "" };
      const before = await send(place, slide, { region: id, reviewer: by, ...now, ...change(now) });
      if (before) done.push({ place, judgement: { region: id, reviewer: by, ...before } });
      show();
    });
  };
  const toggle = (verdict) => judge((now) => ({ verdict: now.verdict === verdict ? "" : verdict }));
  const undo = () => inTurn(async () => {
    const last = done.pop();
    if (!last) return;
    if (last.place !== state.place) await open(last.place);
    const index = state.slide.reviews.findIndex((one) => one.id === last.judgement.region);
    if (index >= 0) choose(index, { go: false });
    if (!(await send(last.place, state.slide, last.judgement))) done.push(last);
    show();
  });

  // Of whoever started `wsiad view`, or of whom this browser knows.
  const start = (name) => {
    reviewer = name || kept();
  };
  byId("accept").addEventListener("click", () => toggle("accepted"));
  byId("reject").addEventListener("click", () => toggle("rejected"));
  byId("undo").addEventListener("click", undo);
  byId("rename").addEventListener("click", () => asked().then(show));
  byId("comment").addEventListener("change", (event) => {
    const comment = event.target.value.trim();
    judge(() => ({ comment }));
  });
  byId("comment").addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") leave();
  });
  const comment = () => {
    if (!byId("review").disabled) byId("comment").focus();
  };
  return { start, show, toggle, undo, comment };
};
