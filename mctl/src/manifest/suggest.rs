//! “Did you mean …?”

/// The known word that `word` most likely stands for, if one is near enough.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let mut best: Option<(usize, &str)> = None;
    for candidate in known {
        let distance = if plain(candidate) == plain(word) {
            0
        } else {
            strsim::damerau_levenshtein(&lower, &candidate.to_lowercase())
        };
        // A third of the letters may be wrong; one is always forgiven when there are at least three.
        let near = (lower.chars().count().max(candidate.chars().count()) / 3).max(1);
        if distance <= near && lower.len() > 1 && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let known = ["cpus", "memory", "disk", "gpus", "ports", "workingDir"];
        assert_eq!(nearest("memmory", known), Some("memory"));
        assert_eq!(nearest("Memory", known), Some("memory"));
        assert_eq!(nearest("cpu", known), Some("cpus"));
        assert_eq!(nearest("working_dir", known), Some("workingDir"));
        assert_eq!(nearest("elephant", known), None);
        assert_eq!(nearest("x", known), None);
    }
}
