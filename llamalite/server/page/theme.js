// Light or dark: what the user chose here, else what the system has. Runs before the page is drawn, so that it never
// flashes in the wrong colours.
{
  const KEY = "llamalite.theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const chosen = localStorage.getItem(KEY);
  if (chosen) root.dataset.theme = chosen;

  document.addEventListener("DOMContentLoaded", () => {
    const toggle = document.getElementById("theme");
    const draw = () => toggle.setAttribute("aria-pressed", String(dark()));
    toggle.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      localStorage.setItem(KEY, root.dataset.theme);
      draw();
    });
    system.addEventListener("change", draw);
    draw();
  });
}
