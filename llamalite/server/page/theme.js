// Runs before the page is drawn, so that it never flashes in the wrong colours: the theme that the user chose here, else
// the system's.
{
  const chosen = localStorage.getItem("llamalite.theme");
  if (chosen !== null) document.documentElement.dataset.theme = JSON.parse(chosen);
}
