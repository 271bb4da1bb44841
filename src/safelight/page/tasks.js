/** What a model can be asked to do with a picture, from the tasks that the server lists for it. */

/**
 * @param {any} model its entry of /v1/models
 * @returns {{takesPicture: boolean, needsPicture: boolean, takesMask: boolean, needsMask: boolean, varies: boolean,
 *   hasStrength: boolean, needsPrompt: boolean}} needsPrompt: for a picture, too
 */
export function tasksOf(model) {
  const can = (task) => model.tasks.includes(task);
  return {
    takesPicture: model.tasks.some((task) => task !== "text-to-image"),
    needsPicture: !can("text-to-image"),
    takesMask: can("inpainting"),
    needsMask: can("inpainting") && !can("image-to-image"),
    varies: can("image-to-image"),
    hasStrength: can("image-to-image") || can("inpainting"),
    needsPrompt: can("image-editing"),
  };
}
