//! Boxes in normalised image coordinates.

/// A box of the oriented image: corners `(x1, y1)` top left and `(x2, y2)` bottom right as fractions of its width and height, so every value is in [0, 1],
/// with `x1 <= x2` and `y1 <= y2`. A box of no area is legal (a detector's box clipped at the border).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Box2d {
    x1: f32,
    y1: f32,
    x2: f32,
    y2: f32,
}

/// How far outside [0, 1] a coordinate may lie by rounding (a pixel of a 1,000 pixel wide image); it is then clamped.
pub const BOX_TOLERANCE: f32 = 1e-3;

/// Four numbers that are no box.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum BoxError {
    /// NaN or infinite.
    #[error("expected four finite box coordinates, found {name} = {value}")]
    NotFinite {
        /// `x1`, `y1`, `x2` or `y2`.
        name: &'static str,
        /// Its value.
        value: f32,
    },
    /// Not a fraction of the image's size: pixel coordinates, most often.
    #[error(
        "expected box coordinates in [0, 1] (fractions of the image's width and height), found {name} = {value}; divide pixel coordinates by the image's size"
    )]
    OutOfRange {
        /// `x1`, `y1`, `x2` or `y2`.
        name: &'static str,
        /// Its value.
        value: f32,
    },
    /// The second corner lies left of or above the first: `[x, y, width, height]`, most often.
    #[error(
        "expected {low} <= {high} in a box [x1, y1, x2, y2], found {low} = {low_value} and {high} = {high_value}; convert [x, y, width, height] boxes first"
    )]
    NotOrdered {
        /// `x1` or `y1`.
        low: &'static str,
        /// `x2` or `y2`.
        high: &'static str,
        /// Value of the first.
        low_value: f32,
        /// Value of the second.
        high_value: f32,
    },
}

impl Box2d {
    /// Checks four normalised `xyxy` coordinates; those outside [0, 1] by no more than [`BOX_TOLERANCE`] are clamped.
    ///
    /// # Errors
    /// A [`BoxError`] that says which coordinate is not finite, out of range or out of order.
    pub fn new(x1: f32, y1: f32, x2: f32, y2: f32) -> Result<Self, BoxError> {
        for (name, value) in [("x1", x1), ("y1", y1), ("x2", x2), ("y2", y2)] {
            if !value.is_finite() {
                return Err(BoxError::NotFinite { name, value });
            }
            if !(-BOX_TOLERANCE..=1.0 + BOX_TOLERANCE).contains(&value) {
                return Err(BoxError::OutOfRange { name, value });
            }
        }
        for (low, low_value, high, high_value) in [("x1", x1, "x2", x2), ("y1", y1, "y2", y2)] {
            if low_value > high_value {
                return Err(BoxError::NotOrdered { low, high, low_value, high_value });
            }
        }
        // The sum turns -0 into 0.
        let clamp = |v: f32| v.clamp(0.0, 1.0) + 0.0;
        Ok(Self { x1: clamp(x1), y1: clamp(y1), x2: clamp(x2), y2: clamp(y2) })
    }

    /// Left edge, a fraction of the width.
    pub fn x1(&self) -> f32 {
        self.x1
    }

    /// Top edge, a fraction of the height.
    pub fn y1(&self) -> f32 {
        self.y1
    }

    /// Right edge, a fraction of the width.
    pub fn x2(&self) -> f32 {
        self.x2
    }

    /// Bottom edge, a fraction of the height.
    pub fn y2(&self) -> f32 {
        self.y2
    }

    /// `[x1, y1, x2, y2]`.
    pub fn xyxy(&self) -> [f32; 4] {
        [self.x1, self.y1, self.x2, self.y2]
    }

    /// Area as a fraction of the image's.
    pub fn area(&self) -> f32 {
        (self.x2 - self.x1) * (self.y2 - self.y1)
    }

    /// Area of the common part as a fraction of the image's; 0 for boxes that only touch.
    pub fn intersection(&self, other: &Box2d) -> f32 {
        let width = self.x2.min(other.x2) - self.x1.max(other.x1);
        let height = self.y2.min(other.y2) - self.y1.max(other.y1);
        if width <= 0.0 || height <= 0.0 { 0.0 } else { width * height }
    }

    /// Intersection over union, in [0, 1]; 0 where both have no area.
    pub fn iou(&self, other: &Box2d) -> f32 {
        let intersection = self.intersection(other);
        if intersection == 0.0 {
            return 0.0;
        }
        (intersection / (self.area() + other.area() - intersection)).min(1.0)
    }

    /// Whether `other` lies inside this box, edges included.
    pub fn contains(&self, other: &Box2d) -> bool {
        self.x1 <= other.x1 && self.y1 <= other.y1 && self.x2 >= other.x2 && self.y2 >= other.y2
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bad_coordinates_are_named() {
        let cases = [
            ([f32::NAN, 0.0, 1.0, 1.0], "found x1 = NaN"),
            ([0.0, 0.0, f32::INFINITY, 1.0], "found x2 = inf"),
            ([0.0, -0.01, 1.0, 1.0], "found y1 = -0.01"),
            ([0.0, 0.0, 320.0, 1.0], "found x2 = 320"),
            ([0.5, 0.0, 0.4, 1.0], "found x1 = 0.5 and x2 = 0.4"),
            ([0.0, 0.6, 1.0, 0.5], "found y1 = 0.6 and y2 = 0.5"),
        ];
        for ([x1, y1, x2, y2], message) in cases {
            let error = Box2d::new(x1, y1, x2, y2).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn rounding_at_the_border_is_clamped() {
        let whole = Box2d::new(-0.0005, -0.0, 1.0009, 1.0).unwrap();
        assert_eq!(whole.xyxy(), [0.0, 0.0, 1.0, 1.0]);
        assert!(whole.xyxy().iter().all(|v| v.is_sign_positive()));
        assert_eq!(Box2d::new(0.3, 0.3, 0.3, 0.9).unwrap().area(), 0.0);
    }

    #[test]
    fn measures_of_known_boxes() {
        let b = |x1, y1, x2, y2| Box2d::new(x1, y1, x2, y2).unwrap();
        let (left, right, middle) = (b(0.0, 0.0, 0.5, 1.0), b(0.5, 0.0, 1.0, 1.0), b(0.25, 0.0, 0.75, 1.0));
        assert_eq!(left.iou(&right), 0.0);
        assert!((left.iou(&middle) - 1.0 / 3.0).abs() < 1e-6);
        assert_eq!(left.intersection(&middle), 0.25);
        assert!(b(0.0, 0.0, 1.0, 1.0).contains(&middle) && !left.contains(&middle) && left.contains(&left));
        let line = b(0.1, 0.1, 0.1, 0.9);
        assert_eq!(line.iou(&line), 0.0);
    }

    prop_compose! {
        fn any_box()(x in [0f32..=1.0, 0f32..=1.0], y in [0f32..=1.0, 0f32..=1.0]) -> Box2d {
            Box2d::new(x[0].min(x[1]), y[0].min(y[1]), x[0].max(x[1]), y[0].max(y[1])).unwrap()
        }
    }

    proptest! {
        #[test]
        fn iou_is_symmetric_and_bounded(a in any_box(), b in any_box()) {
            let iou = a.iou(&b);
            prop_assert!((0.0..=1.0).contains(&iou));
            prop_assert_eq!(iou, b.iou(&a));
            prop_assert!(a.area() == 0.0 || (a.iou(&a) - 1.0).abs() < 1e-5);
            prop_assert!(a.intersection(&b) <= a.area().min(b.area()) + 1e-6);
            if a.contains(&b) {
                prop_assert!((a.intersection(&b) - b.area()).abs() < 1e-6);
            }
        }

        #[test]
        fn any_four_numbers_give_a_box_or_an_error(x1: f32, y1: f32, x2: f32, y2: f32) {
            if let Ok(b) = Box2d::new(x1, y1, x2, y2) {
                prop_assert!(b.xyxy().iter().all(|v| (0.0..=1.0).contains(v)));
                prop_assert!(b.x1() <= b.x2() && b.y1() <= b.y2());
            }
        }
    }
}
