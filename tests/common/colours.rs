//! A data set of plain colours.
use std::path::Path;

/// Two tasks, "warm" and "cool", of two classes each: plain pictures of a colour, and its name. `multi_label` gives a list in place of a class.
pub fn write_data(dir: &Path, multi_label: bool) {
    std::fs::create_dir(dir.join("images")).unwrap();
    let colours = [[("red", [220, 20, 20]), ("orange", [250, 150, 0])], [("blue", [20, 20, 220]), ("green", [0, 160, 40])]];
    let mut items = Vec::new();
    for (task, classes) in colours.iter().enumerate() {
        for (class, (name, rgb)) in classes.iter().enumerate() {
            for i in 0..6 {
                let file = format!("{name}-{i}.png");
                let shade = |x: u8| x.saturating_sub(i * 12);
                image::RgbImage::from_pixel(16, 16, image::Rgb(rgb.map(shade))).save(dir.join("images").join(&file)).unwrap();
                let split = ["train", "train", "train", "train", "val", "test"][usize::from(i)];
                let label = if multi_label { serde_json::json!([1, class]) } else { serde_json::json!(class) };
                items.push(serde_json::json!({
                    "task_id": task, "split": split, "image": file, "text": [format!("something {name}"), "colour"], "label": label,
                }));
            }
        }
    }
    std::fs::write(dir.join("COLOURS.json"), serde_json::to_vec(&items).unwrap()).unwrap();
    let names = serde_json::json!([
        {"task_id": 0, "name": "warm", "labels": ["red", "orange"]}, {"task_id": 1, "name": "cool", "labels": ["blue", "green"]},
    ]);
    std::fs::write(dir.join("labels.json"), serde_json::to_vec(&names).unwrap()).unwrap();
}
