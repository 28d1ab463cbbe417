//! Default boxes of SSD and the offsets from them.

use super::config::{AnchorConfig, BoxCoder};

/// A default box: its centre, and its size, as fractions of the image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Anchor {
    pub(crate) y: f32,
    pub(crate) x: f32,
    pub(crate) height: f32,
    pub(crate) width: f32,
}

/// Cells along a side of each feature map, from the finest to the coarsest.
pub(crate) fn grid_sizes(config: &AnchorConfig, image_size: u32) -> Vec<usize> {
    config.strides.iter().map(|&stride| image_size.div_ceil(stride) as usize).collect()
}

/// Aspect ratio and scale of the anchors of every cell of map `map`. The lowest map takes three, to keep its many
/// cells cheap.
pub(crate) fn cell_shapes(config: &AnchorConfig, map: usize) -> Vec<(f64, f64)> {
    let maps = config.strides.len();
    let steps = (maps.max(2) - 1) as f64;
    let scale = |map: usize| config.min_scale + (config.max_scale - config.min_scale) * map as f64 / steps;
    if map == 0 {
        let others = config.aspect_ratios.iter().filter(|&&ratio| ratio != 1.0).take(2);
        return std::iter::once((1.0, config.lowest_scale)).chain(others.map(|&ratio| (ratio, scale(0)))).collect();
    }
    let next = if map + 1 == maps { 1.0 } else { scale(map + 1) };
    let ratios = config.aspect_ratios.iter().map(|&ratio| (ratio, scale(map)));
    ratios.chain([(1.0, (scale(map) * next).sqrt())]).collect()
}

/// All anchors, map by map, line by line, cell by cell: the order of the network's outputs.
pub(crate) fn anchors(config: &AnchorConfig, image_size: u32) -> Vec<Anchor> {
    let mut all = Vec::new();
    for (map, cells) in grid_sizes(config, image_size).into_iter().enumerate() {
        let shapes = cell_shapes(config, map);
        let centre = |cell: usize| ((cell as f64 + 0.5) / cells as f64) as f32;
        for row in 0..cells {
            for column in 0..cells {
                all.extend(shapes.iter().map(|&(ratio, scale)| Anchor {
                    y: centre(row),
                    x: centre(column),
                    height: (scale / ratio.sqrt()) as f32,
                    width: (scale * ratio.sqrt()) as f32,
                }));
            }
        }
    }
    all
}

/// `e^x`, the same on every platform's mathematics library: rounded once from double precision.
pub(crate) fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

impl Anchor {
    /// The box `[x1, y1, x2, y2]`, clipped to the image, that the offsets `[yc, xc, h, w]` make of this anchor.
    pub(crate) fn decode(&self, offsets: [f32; 4], coder: BoxCoder) -> [f32; 4] {
        let [dy, dx, dh, dw] = offsets;
        let y = dy / coder.centre * self.height + self.y;
        let x = dx / coder.centre * self.width + self.x;
        let half_height = exp(dh / coder.size) * self.height / 2.0;
        let half_width = exp(dw / coder.size) * self.width / 2.0;
        [x - half_width, y - half_height, x + half_width, y + half_height].map(|v| v.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AnchorConfig {
        AnchorConfig {
            strides: vec![16, 32, 64, 128, 256, 512],
            min_scale: 0.2,
            max_scale: 0.95,
            lowest_scale: 0.1,
            aspect_ratios: vec![1.0, 2.0, 0.5, 3.0, 0.3333],
        }
    }

    #[test]
    fn maps_shrink_to_one_cell_and_anchors_follow_the_reference() {
        assert_eq!(grid_sizes(&config(), 300), [19, 10, 5, 3, 2, 1]);
        let all = anchors(&config(), 300);
        assert_eq!(all.len(), 1917);
        assert_eq!(all[0], Anchor { y: 0.5 / 19.0, x: 0.5 / 19.0, height: 0.1, width: 0.1 });
        let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
        // Ratio 2 at scale 0.2: wider than high.
        assert!(near(all[1].width, 0.282_842_7) && near(all[1].height, 0.141_421_36));
        let last = all[1916];
        assert!(near(last.width, 0.95_f32.sqrt()) && near(last.height, 0.95_f32.sqrt()) && last.x == 0.5);
    }

    #[test]
    fn no_offset_is_the_anchor_itself_and_the_image_clips() {
        let coder = BoxCoder { centre: 10.0, size: 5.0 };
        let anchor = Anchor { y: 0.5, x: 0.25, height: 0.2, width: 0.1 };
        let near = |a: [f32; 4], b: [f32; 4]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(anchor.decode([0.0; 4], coder), [0.2, 0.4, 0.3, 0.6]));
        // One anchor's height down, one anchor's width left, e times as large.
        let moved = anchor.decode([10.0, -10.0, 5.0, 5.0], coder);
        let e = std::f32::consts::E;
        assert!(near(moved, [0.15 - 0.05 * e, 0.7 - 0.1 * e, 0.15 + 0.05 * e, 0.7 + 0.1 * e]));
        assert_eq!(anchor.decode([-1000.0, 1000.0, 0.0, 0.0], coder), [1.0, 0.0, 1.0, 0.0]);
    }
}
