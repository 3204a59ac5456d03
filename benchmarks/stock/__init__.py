"""Stock pipelines with tiny random components, and what each must show when transformed."""
