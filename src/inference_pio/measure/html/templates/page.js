(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const memory = {
    get: () => { try { return localStorage.getItem("inference-pio-theme"); } catch { return null; } },
    set: (theme) => { try { localStorage.setItem("inference-pio-theme", theme); } catch { /* a file may have none */ } },
  };
  const kept = memory.get();
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  const shown = () => root.dataset.theme || (system.matches ? "dark" : "light");
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const tell = () => button.setAttribute("aria-label", `Switch to ${shown() === "dark" ? "light" : "dark"} colours`);
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = shown() === "dark" ? "light" : "dark";
      memory.set(root.dataset.theme);
      tell();
    });
    system.addEventListener("change", tell);
    tell();
  });
})();
